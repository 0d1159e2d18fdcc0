//! Whether what holders did is a history that a recipe may have.

use std::collections::BTreeMap;
use std::time::Duration;

use conclave_client::Zxid;
use conclave_client::recipes::Token;
use tokio::time::Instant;

/// A time during which something was held for certain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) start: Instant,
    pub(super) end: Instant,
    pub(super) token: Token,
    /// How many may be held at the same time as this.
    pub(super) at_once: usize,
}

/// What the holders of one recipe did.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) intervals: Vec<Interval>,
    /// Guarded writes in the order of history.
    pub(super) writes: BTreeMap<Zxid, Token>,
    /// What was wrong at the moment at which it happened.
    pub(super) wrong: Vec<String>,
}

impl History {
    /// Says what is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(wrong) = self.wrong.first() {
            return Err(wrong.clone());
        }
        self.check_tokens()?;
        self.check_exclusion()
    }

    /// Tokens grow from holder to holder. Where the token is that of the place in the queue, this is
    /// fairness as well.
    fn check_tokens(&self) -> Result<(), String> {
        let writes: Vec<_> = self.writes.iter().collect();
        for pair in writes.windows(2) {
            let [(at, token), (later, next)] = [pair[0], pair[1]];
            if token > next {
                return Err(format!(
                    "token goes back: {at:?} was written with {token}, {later:?} with {next}"
                ));
            }
        }
        let mut alone: Vec<_> = self.intervals.iter().filter(|held| held.at_once == 1).collect();
        alone.sort_by_key(|held| held.start);
        for pair in alone.windows(2) {
            if pair[0].token >= pair[1].token {
                return Err(format!("token does not grow: {:?}, then {:?}", pair[0], pair[1]));
            }
        }
        Ok(())
    }

    /// No more hold it at once than may.
    fn check_exclusion(&self) -> Result<(), String> {
        let mut intervals = self.intervals.clone();
        intervals.sort_by_key(|held| held.start);
        let mut open: Vec<Interval> = Vec::new();
        for next in intervals {
            open.retain(|earlier| earlier.end > next.start);
            open.push(next);
            let at_once = open.iter().map(|held| held.at_once).min().unwrap_or(usize::MAX);
            if open.len() > at_once {
                return Err(format!("too many at once: {open:?}"));
            }
        }
        Ok(())
    }
}

/// From when to when, in ms, what had which token, and how many may.
type Held = (u64, u64, u64, usize);

fn history(held: &[Held]) -> History {
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    let interval = |&(start, end, token, at_once)| Interval {
        start: at(start),
        end: at(end),
        token: Token::new(token),
        at_once,
    };
    History { intervals: held.iter().map(interval).collect(), ..History::default() }
}

#[test]
fn the_checker_tells_good_histories_from_bad_ones() {
    let good: [&[Held]; 4] = [
        &[(0, 5, 1, 1), (5, 9, 2, 1)],
        &[(0, 5, 7, 2), (1, 9, 3, 2), (6, 8, 5, 2)],
        &[(0, 5, 1, usize::MAX), (1, 6, 2, usize::MAX), (6, 7, 3, 1)],
        &[],
    ];
    for held in good {
        history(held).check().unwrap();
    }
    let bad: [(&[Held], &str); 5] = [
        (&[(0, 5, 1, 1), (4, 9, 2, 1)], "too many at once"),
        (&[(0, 5, 1, 2), (1, 9, 2, 2), (4, 6, 3, 2)], "too many at once"),
        (&[(0, 5, 1, usize::MAX), (4, 6, 3, 1)], "too many at once"),
        (&[(0, 5, 2, 1), (5, 9, 2, 1)], "does not grow"),
        (&[(5, 9, 2, 1), (0, 5, 3, 1)], "does not grow"),
    ];
    for (held, why) in bad {
        let found = history(held).check().unwrap_err();
        assert!(found.contains(why), "{found}");
    }
    let mut stale = history(&[]);
    stale.writes = [(1, 5), (2, 5), (3, 4)]
        .map(|(zxid, token)| (Zxid::from_bits(zxid), Token::new(token)))
        .into();
    assert!(stale.check().unwrap_err().contains("goes back"));
}
