#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation
)]
use bytes::Bytes;
use conclave::store::{self, Identity, Options};
use conclave::tree::{self, Nodes};
use conclave::zab::{Entry, Position, Write};
use conclave_proto::*;
use std::time::Instant;

fn pct(v: &mut Vec<f64>, p: f64) -> f64 {
    v.sort_by(|a, b| a.partial_cmp(b).unwrap());
    v[((v.len() as f64 - 1.0) * p) as usize]
}

fn txn(op: Op) -> Txn {
    Txn {
        semantics: 1,
        time_ms: 1,
        origin: (ServerId::new(1).unwrap(), 0),
        identities: vec![].into(),
        digest: (Zxid::ZERO, 0),
        request: Request { session: SessionId::NONE, xid: Xid(0), acked: Xid(0), op },
    }
}

fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let dir = std::path::Path::new(&dir);
    let n: usize = std::env::args().nth(2).map_or(100_000, |s| s.parse().unwrap());
    let _ = std::fs::remove_dir_all(dir);
    let id = Identity { cluster: "bench".into(), server: ServerId::new(1).unwrap() };
    let mut o = store::open(dir, &id, Options::default()).unwrap();
    let e1 = Epoch::new(1).unwrap();
    let body = Bytes::from(vec![7u8; 200]);
    let mut at = Position::default();
    for batch in [1usize, 10, 100, 1000] {
        let rounds = (200_000 / batch).min(5000);
        let mut lat = vec![];
        for r in 0..rounds + 100 {
            let mut es = vec![];
            for _ in 0..batch {
                let z =
                    at.zxid.next().filter(|_| at.zxid != Zxid::ZERO).unwrap_or(Zxid::new(e1, 1));
                let e = Entry::after(at, z, body.clone());
                at = e.position();
                es.push(e);
            }
            let t = Instant::now();
            o.log.apply(&[Write::Append(es)]).unwrap();
            o.log.sync().unwrap();
            if r >= 100 {
                lat.push(t.elapsed().as_secs_f64() * 1e6);
            }
        }
        let mean = lat.iter().sum::<f64>() / lat.len() as f64;
        println!(
            "append+sync batch {batch}: mean {mean:.0} us p50 {:.0} p99 {:.0} max {:.0}; {:.0}/s",
            pct(&mut lat, 0.5),
            pct(&mut lat, 0.99),
            pct(&mut lat, 1.0),
            batch as f64 / mean * 1e6
        );
    }
    // tree
    let data = Bytes::from(vec![9u8; 100]);
    let mut pos = Position::default();
    let mut apply = |nodes: &mut store::StoreNodes, op: Op, pos: &mut Position| {
        let z = pos.zxid.next().filter(|_| pos.zxid != Zxid::ZERO).unwrap_or(Zxid::new(e1, 1));
        *pos = Position { zxid: z, chain: 0 };
        tree::apply(nodes, z, 0, &txn(op));
    };
    let t = Instant::now();
    let dirs = (n / 1000).max(1);
    let mut paths = vec![];
    let mut ckpt = 0.0;
    for d in 0..dirs {
        let p = ZPath::new(&format!("/dir{d:05}")).unwrap();
        apply(
            &mut o.nodes,
            Op::Create {
                path: p.clone(),
                data: None,
                acl: Acl::open(),
                mode: CreateMode::PERSISTENT,
            },
            &mut pos,
        );
        for i in 0..1000.min(n) {
            let c = p.child(&format!("node{i:06}")).unwrap();
            apply(
                &mut o.nodes,
                Op::Create {
                    path: c.clone(),
                    data: Some(data.clone()),
                    acl: Acl::open(),
                    mode: CreateMode::PERSISTENT,
                },
                &mut pos,
            );
            paths.push(c);
        }
        if o.nodes.dirty_bytes() > 64 << 20 {
            let t = Instant::now();
            let f = o.nodes.freeze().unwrap();
            let c = f.write().unwrap();
            drop(f);
            o.nodes.checkpointed(&c);
            ckpt += t.elapsed().as_secs_f64();
        }
    }
    println!(
        "create {} nodes: {:.2} s of which checkpoints {:.2} s; dirty {} MB",
        paths.len(),
        t.elapsed().as_secs_f64(),
        ckpt,
        o.nodes.dirty_bytes() >> 20
    );
    let t = Instant::now();
    let f = o.nodes.freeze().unwrap();
    println!("freeze {:.3} ms", t.elapsed().as_secs_f64() * 1e3);
    let t = Instant::now();
    let c = f.write().unwrap();
    println!("checkpoint write {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
    let t = Instant::now();
    o.nodes.checkpointed(&c);
    println!("checkpointed {:.3} ms", t.elapsed().as_secs_f64() * 1e3);
    let t = Instant::now();
    drop(f);
    println!("drop frozen {:.3} ms", t.elapsed().as_secs_f64() * 1e3);
    // gets
    let mut x = 12345u64;
    let mut rnd = |m: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % m as u64) as usize
    };
    let k = 500_000;
    let t = Instant::now();
    let mut sum = 0;
    for _ in 0..k {
        sum += o.nodes.node(&paths[rnd(paths.len())]).unwrap().data.unwrap().len();
    }
    println!("get from LMDB: {:.0} ns ({sum})", t.elapsed().as_secs_f64() / k as f64 * 1e9);
    let node = o.nodes.node(&paths[0]).unwrap();
    let m = 100_000.min(paths.len());
    let t = Instant::now();
    for i in 0..m {
        o.nodes.put_node(&paths[i * (paths.len() / m)], node.clone());
    }
    println!("put first: {:.0} ns", t.elapsed().as_secs_f64() / m as f64 * 1e9);
    let t = Instant::now();
    for i in 0..m {
        o.nodes.put_node(&paths[i * (paths.len() / m)], node.clone());
    }
    println!("put again: {:.0} ns", t.elapsed().as_secs_f64() / m as f64 * 1e9);
    let t = Instant::now();
    for i in 0..m {
        sum += o.nodes.node(&paths[i * (paths.len() / m)]).unwrap().data.unwrap().len();
    }
    println!("get from overlay: {:.0} ns", t.elapsed().as_secs_f64() / m as f64 * 1e9);
    let t = Instant::now();
    for i in 0..200 {
        sum += o
            .nodes
            .children(&ZPath::new(&format!("/dir{:05}", i % dirs)).unwrap(), None, 1000)
            .len();
    }
    println!("children 1000: {:.1} us ({sum})", t.elapsed().as_secs_f64() / 200.0 * 1e6);
    let t = Instant::now();
    let f = o.nodes.freeze().unwrap();
    println!("freeze {:.3} ms", t.elapsed().as_secs_f64() * 1e3);
    let t = Instant::now();
    let c = f.write().unwrap();
    println!("checkpoint of {m} updates {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
    o.nodes.checkpointed(&c);
    drop(f);
    // snapshot
    let t = Instant::now();
    let mut s = o.nodes.snapshot();
    println!("open snapshot {:.3} ms", t.elapsed().as_secs_f64() * 1e3);
    let t = Instant::now();
    let mut chunks = vec![];
    let mut bytes = 0;
    while let Some(c) = s.next_chunk().unwrap() {
        bytes += c.len();
        chunks.push(c);
    }
    println!("read snapshot {:.2} s, {} MB", t.elapsed().as_secs_f64(), bytes >> 20);
    let at = s.at();
    drop(s);
    let t = Instant::now();
    let mut w = o.home.receive().unwrap();
    for c in &chunks {
        w.chunk(c).unwrap();
    }
    let t2 = Instant::now();
    match w.finish(at) {
        Ok(r) => {
            println!(
                "write snapshot {:.2} s, of which verify {:.2} s",
                t.elapsed().as_secs_f64(),
                t2.elapsed().as_secs_f64()
            );
            let t = Instant::now();
            let i = o.log.install(r).unwrap();
            println!("install {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
            o.nodes.replace(i);
        }
        Err(e) => println!("snapshot refused as nodes were overwritten: {e}"),
    }
    println!("map {:?}", o.nodes.map_usage());
    let (used, _) = o.nodes.map_usage();
    println!("bytes per node {}", used / paths.len() as u64);
    drop(chunks);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for l in status
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM") || l.starts_with("RssAnon"))
    {
        println!("{l}");
    }
    drop(o);
    let t = Instant::now();
    let o = store::open(dir, &id, Options::default());
    match o {
        Ok(o) => println!(
            "open {:.1} ms, entries {}, damage {:?}",
            t.elapsed().as_secs_f64() * 1e3,
            o.durable.entries.len(),
            o.report.damage
        ),
        Err(e) => println!("{e}"),
    }
}
