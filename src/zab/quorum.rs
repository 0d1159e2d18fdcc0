//! Who counts.

use std::collections::BTreeSet;

use conclave_proto::ServerId;

/// The servers that vote. Any two majorities of them have a server in common; everything rests on
/// that.
#[derive(Debug)]
pub(super) struct Quorum {
    voters: BTreeSet<ServerId>,
}

impl Quorum {
    pub(super) fn new(voters: &[ServerId]) -> Quorum {
        let voters: BTreeSet<ServerId> = voters.iter().copied().collect();
        assert!(!voters.is_empty(), "an ensemble needs a server that votes");
        Quorum { voters }
    }

    pub(super) fn voters(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.voters.iter().copied()
    }

    pub(super) fn votes(&self, server: ServerId) -> bool {
        self.voters.contains(&server)
    }

    /// Whether these servers, each named once, hold a majority of the votes.
    pub(super) fn is_majority(&self, servers: impl Iterator<Item = ServerId>) -> bool {
        servers.filter(|server| self.votes(*server)).count() > self.voters.len() / 2
    }

    /// The highest value that a majority of the voters has reached, if a majority has any.
    pub(super) fn reached<T: Ord + Copy>(
        &self,
        values: impl Iterator<Item = (ServerId, T)>,
    ) -> Option<T> {
        let mut values: Vec<T> =
            values.filter(|(server, _)| self.votes(*server)).map(|(_, value)| value).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get(self.voters.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ServerId {
        ServerId::new(number).unwrap()
    }

    #[test]
    fn a_majority_is_more_than_half_of_the_voters_and_observers_do_not_count() {
        let quorum = Quorum::new(&[id(1), id(2), id(3), id(4)]);
        assert!(!quorum.is_majority([1, 2].map(id).into_iter()));
        assert!(!quorum.is_majority([1, 2, 9].map(id).into_iter()));
        assert!(quorum.is_majority([1, 2, 4].map(id).into_iter()));
    }

    #[test]
    fn what_a_majority_reached_is_what_the_slowest_of_the_fastest_majority_reached() {
        let quorum = Quorum::new(&[id(1), id(2), id(3)]);
        let reached = |values: &[(u8, u32)]| {
            quorum.reached(values.iter().map(|(server, value)| (id(*server), *value)))
        };
        assert_eq!(reached(&[(1, 9)]), None);
        assert_eq!(reached(&[(1, 9), (2, 4)]), Some(4));
        assert_eq!(reached(&[(1, 9), (2, 4), (3, 7)]), Some(7));
        assert_eq!(reached(&[(1, 9), (8, 9), (2, 4)]), Some(4));
    }
}
