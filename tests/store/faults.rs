//! A system call that fails ends the server; nothing it had acknowledged is lost by that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use conclave::store::{Probe, Step, StoreError};

use crate::server::{Allowed, Server, check, scratch};

/// Run a server whose `fails`-th step fails like this; `false` if it never comes to that.
fn run(seed: u64, fails: u64, kind: io::ErrorKind) -> bool {
    let scratch = scratch();
    let home = scratch.path().join("home");
    let steps = AtomicU64::new(0);
    let probe = Probe(Arc::new(move |_: &Step<'_>| {
        if steps.fetch_add(1, Ordering::Relaxed) == fails { Err(kind.into()) } else { Ok(()) }
    }));
    let allowed = Allowed::default();
    let server = Server::new(scratch.path(), &home, seed, Arc::clone(&allowed), probe);
    let failed = server.and_then(|mut server| {
        for _ in 0..40 {
            server.act()?;
        }
        Ok(server)
    });
    match failed {
        Ok(server) => {
            server.settle();
            drop(server);
            check(&home, &allowed.lock().unwrap(), "no step failed");
            false
        }
        Err(error) => {
            assert!(matches!(error, StoreError::Io { .. }), "{error}");
            let context = format!("after step {fails} of seed {seed} failed ({error})");
            check(&home, &allowed.lock().unwrap(), &context);
            true
        }
    }
}

#[test]
fn a_failed_step_loses_nothing() {
    let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull];
    let mut failures = 0;
    for fails in 0.. {
        let kind = kinds[usize::try_from(fails).unwrap() % kinds.len()];
        if !run(11 + fails, fails, kind) {
            break;
        }
        failures += 1;
    }
    assert!(failures > 50, "only {failures} steps");
}
