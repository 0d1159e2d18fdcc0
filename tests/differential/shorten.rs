//! Making a script that shows a difference as short as it can be.

use std::time::Duration;

use crate::script::{Action, Step};
use crate::{Difference, Pair};

/// How often it is tried.
const ATTEMPTS: usize = 400;

/// How long an answer may take: not as long as otherwise, since it may be that which is missing.
const PATIENCE: Duration = Duration::from_secs(2);

/// A shorter script with a difference, and that difference.
pub(crate) fn shorten(
    pair: &mut Pair,
    mut steps: Vec<Step>,
    mut difference: Difference,
) -> (Vec<Step>, Difference) {
    steps.truncate(difference.step + 1);
    let mut attempts = 0;
    let mut size = steps.len().div_ceil(2);
    loop {
        let mut start = 0;
        let mut shorter = false;
        while start < steps.len() && attempts < ATTEMPTS {
            let end = (start + size).min(steps.len());
            let mut fewer = steps.clone();
            fewer.drain(start..end);
            attempts += 1;
            match pair.run(&fewer, PATIENCE) {
                Err(found) => {
                    fewer.truncate(found.step + 1);
                    (steps, difference, shorter) = (fewer, found, true);
                }
                Ok(()) => start = end,
            }
        }
        if size == 1 && !shorter || attempts >= ATTEMPTS {
            break;
        }
        size = size.div_ceil(2);
    }
    shorten_steps(pair, &mut steps, &mut difference, attempts);
    (steps, difference)
}

/// Fewer requests in each step.
fn shorten_steps(
    pair: &mut Pair,
    steps: &mut Vec<Step>,
    difference: &mut Difference,
    mut attempts: usize,
) {
    let mut number = steps.len();
    while number > 0 {
        number -= 1;
        let mut place = 0;
        while attempts < 2 * ATTEMPTS && number < steps.len() {
            let mut fewer = steps.clone();
            let Action::Requests(ops) = &mut fewer[number].action else { break };
            if place >= ops.len() || ops.len() == 1 {
                break;
            }
            ops.remove(place);
            attempts += 1;
            match pair.run(&fewer, PATIENCE) {
                Err(found) => {
                    fewer.truncate(found.step + 1);
                    (*steps, *difference) = (fewer, found);
                }
                Ok(()) => place += 1,
            }
        }
    }
}
