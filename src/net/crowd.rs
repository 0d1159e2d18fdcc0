//! How many connections there may be, and how many of one origin.

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
    share: Share,
    total: Cell<usize>,
    origins: RefCell<BTreeMap<IpAddr, usize>>,
}

/// How many of one origin there may be.
#[derive(Clone, Copy, Debug)]
enum Share {
    /// So many.
    Fixed(usize),
    /// As long as there is a free place for so many of them.
    OfWhatIsLeft(usize),
}

/// For so many connections of one origin there is a free place left for others: it may have 80 % of
/// all places, the next one 80 % of what is left, and so on.
const FOR_EACH_FREE_PLACE: usize = 4;

/// One of them, counted while this lives.
#[derive(Debug)]
pub struct Place {
    crowd: Rc<Inner>,
    origin: IpAddr,
}

impl Crowd {
    /// One that has room for `most` connections, and `most_of_one` of the same origin.
    pub fn new(most: usize, most_of_one: usize) -> Crowd {
        Crowd::with(most, Share::Fixed(most_of_one))
    }

    /// One that has room for `most` connections, of which no origin takes the last ones alone.
    pub fn shared(most: usize) -> Crowd {
        Crowd::with(most, Share::OfWhatIsLeft(FOR_EACH_FREE_PLACE))
    }

    fn with(most: usize, share: Share) -> Crowd {
        let (total, origins) = (Cell::default(), RefCell::default());
        Crowd(Rc::new(Inner { most, share, total, origins }))
    }

    /// A place for a connection from there, if there is room.
    pub fn admit(&self, address: IpAddr) -> Option<Place> {
        let inner = &self.0;
        let origin = origin(address);
        let mut origins = inner.origins.borrow_mut();
        let before = origins.get(&origin).copied().unwrap_or_default();
        let free = inner.most - inner.total.get();
        let most_of_one = match inner.share {
            Share::Fixed(most) => most,
            Share::OfWhatIsLeft(times) => times * free,
        };
        if free == 0 || before >= most_of_one {
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
    fn no_origin_takes_what_is_left_for_others() {
        let crowd = Crowd::shared(100);
        let admit = |address: &str| crowd.admit(address.parse().unwrap());
        let many: Vec<Place> = std::iter::from_fn(|| admit("10.0.0.1")).collect();
        assert_eq!(many.len(), 80);
        let more: Vec<Place> = std::iter::from_fn(|| admit("10.0.0.2")).collect();
        assert_eq!(more.len(), 16);
        let _another = admit("10.0.0.3").unwrap();
        drop(more);
        assert!(admit("10.0.0.1").is_none(), "it has its share");
        drop(many);
        let _again = admit("10.0.0.1").unwrap();
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
