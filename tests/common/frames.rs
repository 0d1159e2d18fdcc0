//! Frames of ZooKeeper's protocol: valid ones of every request, and what becomes of them when
//! something goes wrong. The same seed gives the same frames.

use crate::random::Dice;

/// A part of a request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Path,
    Text,
    Buffer,
    Bool,
    /// One of these.
    Int(&'static [i32]),
    Long(&'static [i64]),
    Byte(u8),
    Acl,
    Paths,
    /// Requests with headers, and their end.
    Writes,
    Reads,
}

use Part::{Acl, Bool, Buffer, Byte, Int, Long, Path, Paths, Reads, Text, Writes};

const VERSION: Part = Int(&[-1, 0, 1, 7]);
const ZXID: Part = Long(&[0, 1, 1 << 40, i64::MAX]);
const WATCH_TYPE: Part = Int(&[1, 2, 3, 4, 5]);

/// Every request that there is, with its body.
pub(crate) const REQUESTS: [(i32, &[Part]); 41] = [
    (1, &[Path, Buffer, Acl, Int(&[0, 1, 2, 3])]),
    (2, &[Path, VERSION]),
    (3, &[Path, Bool]),
    (4, &[Path, Bool]),
    (5, &[Path, Buffer, VERSION]),
    (6, &[Path]),
    (7, &[Path, Acl, VERSION]),
    (8, &[Path, Bool]),
    (9, &[Path]),
    (11, &[]),
    (12, &[Path, Bool]),
    (13, &[Path, VERSION]),
    (14, &[Writes]),
    (15, &[Path, Buffer, Acl, Int(&[0, 1, 2, 3])]),
    (16, &[Text, Text, Text, ZXID]),
    (17, &[Path, WATCH_TYPE]),
    (18, &[Path, WATCH_TYPE]),
    (19, &[Path, Buffer, Acl, Int(&[4])]),
    (20, &[Path]),
    (21, &[Path, Buffer, Acl, Int(&[5, 6]), Long(&[1, 1000])]),
    (22, &[Reads]),
    (100, &[Int(&[0]), Text, Buffer]),
    (101, &[ZXID, Paths, Paths, Paths]),
    (102, &[Buffer]),
    (103, &[Path]),
    (104, &[Path]),
    (105, &[ZXID, Paths, Paths, Paths, Paths, Paths]),
    (106, &[Path, Int(&[0, 1])]),
    (107, &[]),
    (500, &[Path, Bool, Byte(3)]),
    (501, &[Path, Int(&[-1])]),
    (502, &[Path, Buffer, Acl, Int(&[0, 1, 2, 3])]),
    (503, &[Path, Int(&[1, 5, 1000])]),
    (504, &[Path]),
    (505, &[Path, VERSION]),
    (506, &[Path, Bool, Byte(3), Bool, Bool]),
    (507, &[Path, Int(&[1, 5, 1000])]),
    (-11, &[]),
    (0, &[]),
    (99, &[]),
    (-1, &[]),
];

const WRITES: [i32; 8] = [1, 2, 5, 13, 15, 501, 502, 505];
const READS: [i32; 6] = [3, 4, 8, 12, 500, 506];

const PATHS: [&str; 8] =
    ["/", "/a", "/a", "/a/b", "/a/b/c", "/b", "/zookeeper", "/zookeeper/quota"];

/// What stands where a length, a count or a number is expected.
const NUMBERS: [i32; 14] = [
    -1,
    -2,
    0,
    1,
    2,
    255,
    256,
    1000,
    65_536,
    0xf_ffff,
    0x10_0000,
    i32::MIN,
    i32::MAX,
    i32::MAX - 3,
];

/// The bytes of a frame's length.
const LENGTH: usize = 4;

/// Writes frames.
pub(crate) struct Frames(pub(crate) Dice);

impl Frames {
    pub(crate) fn new(seed: u64) -> Frames {
        Frames(Dice::new(seed))
    }

    /// A valid frame of a request of any kind.
    pub(crate) fn any(&mut self) -> Vec<u8> {
        let (kind, _) = *self.0.pick(&REQUESTS);
        self.of(kind)
    }

    /// A valid frame of this request.
    pub(crate) fn of(&mut self, kind: i32) -> Vec<u8> {
        let mut body = Vec::new();
        put_int(&mut body, 1);
        put_int(&mut body, kind);
        self.request(kind, &mut body);
        framed(&body)
    }

    /// A frame in which something is wrong, most of the time.
    pub(crate) fn bad(&mut self) -> Vec<u8> {
        let mut frame = self.any();
        for _ in 0..=self.0.below(3) {
            self.spoil(&mut frame);
        }
        if self.0.chance(85) && frame.len() >= LENGTH {
            // Its length is right, so that the rest is looked at.
            frame = framed(&frame[LENGTH..]);
        }
        frame
    }

    fn request(&mut self, kind: i32, out: &mut Vec<u8>) {
        let (_, parts) = REQUESTS.iter().find(|(known, _)| *known == kind).expect("it is known");
        for part in *parts {
            self.part(*part, out);
        }
    }

    fn part(&mut self, part: Part, out: &mut Vec<u8>) {
        match part {
            Path => put_buffer(out, self.0.pick(&PATHS).as_bytes()),
            Text => put_buffer(out, self.0.pick(&["digest", "ip", "x509", "", "u:p"]).as_bytes()),
            Buffer => match self.0.below(40) {
                0 => put_int(out, -1),
                length => put_buffer(out, &vec![b'x'; length]),
            },
            Bool => out.push(u8::from(self.0.chance(50))),
            Int(choices) => put_int(out, *self.0.pick(choices)),
            Long(choices) => out.extend(self.0.pick(choices).to_be_bytes()),
            Byte(below) => out.push(u8::try_from(self.0.below(below.into())).expect("a byte")),
            Acl => {
                put_int(out, 1);
                put_int(out, 31);
                put_buffer(out, b"world");
                put_buffer(out, b"anyone");
            }
            Paths => {
                let count = self.0.below(4);
                put_int(out, i32::try_from(count).expect("a few"));
                (0..count).for_each(|_| self.part(Path, out));
            }
            Writes => self.requests(&WRITES, out),
            Reads => self.requests(&READS, out),
        }
    }

    fn requests(&mut self, kinds: &[i32], out: &mut Vec<u8>) {
        for _ in 0..self.0.below(5) {
            let kind = *self.0.pick(kinds);
            put_header(out, kind, false);
            self.request(kind, out);
        }
        put_header(out, -1, true);
    }

    /// Makes one mistake.
    fn spoil(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            return;
        }
        let at = self.0.below(frame.len());
        match self.0.below(7) {
            0 => frame[at] ^= 1 << self.0.below(8),
            1 => frame.truncate(at),
            2 | 3 => {
                // A number in the place of another; those of a body stand anywhere.
                let number = self.0.pick(&NUMBERS).to_be_bytes();
                frame.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = new);
            }
            4 => {
                let other = self.any();
                let from = self.0.below(other.len());
                frame.truncate(at);
                frame.extend_from_slice(&other[from..]);
            }
            5 => {
                let more: Vec<u8> = (0..self.0.below(20)).map(|_| self.byte()).collect();
                frame.splice(at..at, more);
            }
            _ => {
                let part = frame[at..].to_vec();
                frame.extend(part);
            }
        }
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.0.below(256)).expect("a byte")
    }
}

fn put_int(out: &mut Vec<u8>, number: i32) {
    out.extend(number.to_be_bytes());
}

fn put_buffer(out: &mut Vec<u8>, bytes: &[u8]) {
    put_int(out, i32::try_from(bytes.len()).expect("tests write little"));
    out.extend(bytes);
}

fn put_header(out: &mut Vec<u8>, kind: i32, done: bool) {
    put_int(out, kind);
    out.push(u8::from(done));
    put_int(out, -1);
}

/// Bytes with their length before them.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("tests write little");
    [&length.to_be_bytes()[..], body].concat()
}
