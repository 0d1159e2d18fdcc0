//! How many connections there may be of those that have not shown yet who they are.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

/// Counts them, in all and by origin: an IPv4 address, or the network of an IPv6 address, since
/// whoever has one of its addresses has all 2^64 of them.
#[derive(Clone, Debug)]
pub struct Crowd(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_of_one: usize,
    total: Cell<usize>,
    origins: RefCell<BTreeMap<IpAddr, usize>>,
}

/// One of them, counted while this lives.
#[derive(Debug)]
pub struct Place {
    crowd: Rc<Inner>,
    origin: IpAddr,
}

impl Crowd {
    /// One that has room for `most` connections, and `most_of_one` of the same origin.
    pub fn new(most: usize, most_of_one: usize) -> Crowd {
        let (total, origins) = (Cell::default(), RefCell::default());
        Crowd(Rc::new(Inner { most, most_of_one, total, origins }))
    }

    /// A place for a connection from there, if there is room.
    pub fn admit(&self, address: IpAddr) -> Option<Place> {
        let inner = &self.0;
        let origin = origin(address);
        let mut origins = inner.origins.borrow_mut();
        let before = origins.get(&origin).copied().unwrap_or_default();
        if inner.total.get() >= inner.most || before >= inner.most_of_one {
            return None;
        }
        origins.insert(origin, before + 1);
        inner.total.set(inner.total.get() + 1);
        Some(Place { crowd: inner.clone(), origin })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.total.set(self.crowd.total.get() - 1);
        let mut origins = self.crowd.origins.borrow_mut();
        if let Some(count) = origins.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                origins.remove(&self.origin);
            }
        }
    }
}

/// What an address is one of: itself, or its network if it is one of IPv6.
pub fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_in_all_and_of_one_origin() {
        let crowd = Crowd::new(3, 2);
        let admit = |address: &str| crowd.admit(address.parse().unwrap());
        let first = admit("10.0.0.1").unwrap();
        let _second = admit("::ffff:10.0.0.1").unwrap();
        assert!(admit("10.0.0.1").is_none(), "two are enough of one");
        let third = admit("2001:db8::1").unwrap();
        assert!(admit("10.0.0.2").is_none(), "three are enough");
        drop(third);
        drop(first);
        let _again = admit("10.0.0.1").unwrap();
        assert!(admit("10.0.0.1").is_none());
    }

    #[test]
    fn a_network_of_ipv6_is_one_origin() {
        let crowd = Crowd::new(9, 1);
        let admit = |address: &str| crowd.admit(address.parse().unwrap());
        let _one = admit("2001:db8:0:1::1").unwrap();
        assert!(admit("2001:db8:0:1:ffff::2").is_none());
        assert!(admit("2001:db8:0:2::1").is_some());
    }
}
