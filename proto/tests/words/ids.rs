//! Identifiers.

use conclave_proto::{Epoch, Secret, ServerId, Zxid};
use proptest::prelude::*;

use crate::values;

fn epoch(number: u32) -> Epoch {
    Epoch::new(number).unwrap()
}

proptest! {
    #[test]
    fn a_zxid_is_its_epoch_and_its_counter(
        number in 0..=Epoch::MAX.get(),
        counter in 0..=Zxid::MAX_COUNTER,
    ) {
        let zxid = Zxid::new(epoch(number), counter);
        prop_assert_eq!(zxid.epoch(), epoch(number));
        prop_assert_eq!(zxid.counter(), counter);
        prop_assert_eq!(Zxid::from_bits(zxid.bits()), zxid);
        prop_assert_eq!(zxid.to_string(), format!("{number}.{counter}"));
    }

    /// The order of zxids is that of epochs, and within one that of counters.
    #[test]
    fn zxids_are_in_the_order_of_history(a in values::zxid(), b in values::zxid()) {
        prop_assert_eq!(a.cmp(&b), (a.epoch(), a.counter()).cmp(&(b.epoch(), b.counter())));
    }

    /// What follows is later, and nothing lies between a zxid and its next.
    #[test]
    fn only_the_next_or_a_new_epoch_follows(a in values::zxid(), b in values::zxid()) {
        if b.follows(a) {
            prop_assert!(b > a);
            prop_assert!(b.counter() == 1 || a.next() == Some(b));
        }
        if let Some(next) = a.next() {
            prop_assert!(next.follows(a));
            prop_assert_eq!(next.bits() - a.bits(), 1);
        }
        prop_assert!(!a.follows(a));
    }
}

#[test]
fn a_counter_does_not_run_into_the_epoch() {
    let last = Zxid::new(epoch(7), Zxid::MAX_COUNTER);
    assert_eq!(last.next(), None);
    assert!(Zxid::new(epoch(8), 1).follows(last));
    assert!(!Zxid::new(epoch(8), 0).follows(last));
    assert!(!Zxid::new(epoch(8), 2).follows(last));
    assert!(Zxid::new(epoch(9), 1).follows(Zxid::new(epoch(7), 3)));
}

#[test]
fn epochs_end() {
    assert_eq!(Epoch::new(1 << 24), None);
    assert_eq!(Epoch::MAX.next(), None);
    assert_eq!(Epoch::ZERO.next(), Epoch::new(1));
    assert_eq!(Zxid::MAX.epoch(), Epoch::MAX);
}

#[test]
fn servers_are_1_to_254() {
    assert_eq!(ServerId::new(0), None);
    assert_eq!(ServerId::new(255), None);
    assert_eq!(ServerId::new(254).map(ServerId::get), Some(254));
}

#[test]
fn a_secret_is_not_printed() {
    let secret = Secret::new([0xab; 16]);
    assert_eq!(format!("{secret:?}"), "***");
    assert_eq!(secret, Secret::new([0xab; 16]));
    let mut other = [0xab; 16];
    other[15] = 0;
    assert_ne!(secret, Secret::new(other));
}
