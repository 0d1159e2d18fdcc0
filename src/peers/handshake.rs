//! How two servers make sure of each other before anything else is said.
//!
//! The one who dials sends a [`Hello`]: who it is, whom it means to reach, of which ensemble. The
//! other answers with a [`Welcome`] or a [`Refusal`], which also says who *it* is, so that a wrong
//! address is found out on both ends. There is no default: a field that is missing is an error. A later
//! version may say more after what is here; whatever it says, it is known for one.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_proto::ServerId;
use conclave_proto::frame::{next_frame, write_frame};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What the first bytes of a link are: a client that dials the wrong port is found out by it.
const MAGIC: &[u8; 8] = b"CONCLAVE";
/// The version of what servers say to each other.
pub const VERSION: u16 = 3;
/// The oldest version that is still understood. No release spoke an earlier one.
const OLDEST: u16 = 3;
/// The largest frame of a handshake, in bytes.
const HANDSHAKE_BYTES: usize = 256;

/// What the one who dials says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The newest version it speaks.
    pub version: u16,
    /// The oldest version it speaks.
    pub oldest: u16,
    /// Who it is.
    pub from: ServerId,
    /// Whom it means to reach.
    pub to: ServerId,
    /// Of which ensemble.
    pub cluster: String,
    /// Which members vote, as it was told, in the order of their numbers.
    pub voters: Vec<ServerId>,
    /// A number that this process has drawn: another process has another one.
    pub instance: u64,
}

/// What the one who was dialled answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What is wrong, if anything.
    pub verdict: Result<(), Refusal>,
    /// The newest version it speaks.
    pub version: u16,
    /// Who it is.
    pub me: ServerId,
    /// Of which ensemble.
    pub cluster: String,
    /// The number that this process has drawn.
    pub instance: u64,
}

/// Why two servers do not talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// They have no version in common.
    Version,
    /// They belong to different ensembles.
    Cluster,
    /// Another server was meant.
    NotMe,
    /// The one who dials is no member.
    Stranger,
    /// The one who dials has not the certificate of the member it says it is.
    Unproven,
    /// They were told of other voters: a majority of the ones need not know of one of the others.
    Voters,
    /// Another process is linked as the server that the one who dials says it is.
    Twin,
}

impl Refusal {
    const ALL: [Refusal; 7] = [
        Refusal::Version,
        Refusal::Cluster,
        Refusal::NotMe,
        Refusal::Stranger,
        Refusal::Unproven,
        Refusal::Voters,
        Refusal::Twin,
    ];

    fn code(self) -> u8 {
        match self {
            Refusal::Version => 1,
            Refusal::Cluster => 2,
            Refusal::NotMe => 3,
            Refusal::Stranger => 4,
            Refusal::Unproven => 5,
            Refusal::Voters => 6,
            Refusal::Twin => 7,
        }
    }

    /// What is wrong, with a server that speaks that version, and what to do about it.
    pub fn describe(self, theirs: u16) -> String {
        let words = match self {
            Refusal::Version => {
                return format!("the versions are too far apart: {}", versions(theirs));
            }
            Refusal::Cluster => {
                "the ensembles have different names; correct `cluster` or `members.peer`"
            }
            Refusal::NotMe => "another server is at this address; correct `members` or `id`",
            Refusal::Stranger => {
                "the server that dials is not among `members` here; make the lists equal"
            }
            Refusal::Unproven => {
                "the certificate of the server that dials is not that of the member it says it is; \
                 its alternative names must have URI:conclave://CLUSTER/ID"
            }
            Refusal::Voters => {
                "the two have different voters among their `members`; make the lists equal"
            }
            Refusal::Twin => {
                "another process is linked as the server that dials; give each server its own `id`, \
                 and in `members` its own address"
            }
        };
        words.into()
    }
}

impl Hello {
    /// What this process, which is the server `from`, says to that one.
    pub fn new(
        from: ServerId,
        to: ServerId,
        cluster: &str,
        voters: &[ServerId],
        instance: u64,
    ) -> Hello {
        let (cluster, voters) = (cluster.into(), voters.into());
        Hello { version: VERSION, oldest: OLDEST, from, to, cluster, voters, instance }
    }

    /// Its frame.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        write_frame(&mut out, |out| {
            out.put_slice(MAGIC);
            out.put_u16(self.version);
            out.put_u16(self.oldest);
            out.put_u8(self.from.get());
            out.put_u8(self.to.get());
            put_name(out, &self.cluster);
            out.put_u8(u8::try_from(self.voters.len()).expect("a server has a number of 8 bits"));
            self.voters.iter().for_each(|voter| out.put_u8(voter.get()));
            out.put_u64(self.instance);
        });
        out
    }

    fn decode(mut frame: Bytes) -> Option<Hello> {
        take_magic(&mut frame)?;
        let hello = Hello {
            version: frame.try_get_u16().ok()?,
            oldest: frame.try_get_u16().ok()?,
            from: ServerId::new(frame.try_get_u8().ok()?)?,
            to: ServerId::new(frame.try_get_u8().ok()?)?,
            cluster: take_name(&mut frame)?,
            voters: take_servers(&mut frame)?,
            instance: frame.try_get_u64().ok()?,
        };
        (frame.is_empty() || hello.version > VERSION).then_some(hello)
    }

    /// Reads one from a new connection.
    ///
    /// # Errors
    /// If something else comes, which is invalid data, or the connection breaks.
    pub async fn read(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
        let frame = read_frame(socket).await?;
        Hello::decode(frame.clone()).ok_or_else(|| {
            invalid(later_version(frame, 0).unwrap_or_else(|| "it is not a Conclave server".into()))
        })
    }
}

impl Welcome {
    /// The answer of this process, which is `me`, of the ensemble `cluster` with these `voters`, and
    /// knows the members `known`.
    pub fn to(
        hello: &Hello,
        (me, instance): (ServerId, u64),
        cluster: &str,
        voters: &[ServerId],
        known: impl Fn(ServerId) -> bool,
    ) -> Welcome {
        let verdict = if hello.version < OLDEST || hello.oldest > VERSION {
            Err(Refusal::Version)
        } else if hello.cluster != cluster {
            Err(Refusal::Cluster)
        } else if hello.to != me {
            Err(Refusal::NotMe)
        } else if !known(hello.from) {
            Err(Refusal::Stranger)
        } else if hello.voters != voters {
            Err(Refusal::Voters)
        } else {
            Ok(())
        };
        Welcome { verdict, version: VERSION, me, cluster: cluster.into(), instance }
    }

    /// Its frame.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        write_frame(&mut out, |out| {
            out.put_slice(MAGIC);
            out.put_u8(self.verdict.err().map_or(0, Refusal::code));
            out.put_u16(self.version);
            out.put_u8(self.me.get());
            put_name(out, &self.cluster);
            out.put_u64(self.instance);
        });
        out
    }

    fn decode(mut frame: Bytes) -> Option<Welcome> {
        take_magic(&mut frame)?;
        let verdict = match frame.try_get_u8().ok()? {
            0 => Ok(()),
            code => Err(Refusal::ALL.into_iter().find(|refusal| refusal.code() == code)?),
        };
        let welcome = Welcome {
            verdict,
            version: frame.try_get_u16().ok()?,
            me: ServerId::new(frame.try_get_u8().ok()?)?,
            cluster: take_name(&mut frame)?,
            instance: frame.try_get_u64().ok()?,
        };
        (frame.is_empty() || welcome.version > VERSION).then_some(welcome)
    }

    /// Reads the answer to `hello`, and makes sure that it comes from the server that was meant.
    ///
    /// # Errors
    /// Why the link cannot be used: invalid data if it is not the server that was meant, or will not
    /// have the link; anything else if the connection breaks.
    pub async fn read(socket: &mut (impl AsyncRead + Unpin), hello: &Hello) -> io::Result<Welcome> {
        let frame = read_frame(socket).await?;
        let Some(welcome) = Welcome::decode(frame.clone()) else {
            // The version follows the verdict.
            let stranger = || "it is not a Conclave server; correct `members.peer`".to_owned();
            return Err(invalid(later_version(frame, 1).unwrap_or_else(stranger)));
        };
        let described = format!("server {} of ensemble {:?}", welcome.me, welcome.cluster);
        if let Err(refusal) = welcome.verdict {
            let why = refusal.describe(welcome.version);
            return Err(invalid(format!("refused by {described}: {why}")));
        }
        if welcome.me != hello.to || welcome.cluster != hello.cluster {
            return Err(invalid(format!("it is {described}; correct `members`")));
        }
        Ok(welcome)
    }
}

/// What to do about a server that speaks another version.
fn versions(theirs: u16) -> String {
    let older = if theirs > VERSION { "this server" } else { "the other one" };
    format!(
        "this server speaks version {VERSION}, the other one version {theirs}; upgrade {older}, one \
         release at a time"
    )
}

/// Why a frame is not understood, if a later version has made it. The version is at that place after the
/// magic.
fn later_version(mut frame: Bytes, place: usize) -> Option<String> {
    take_magic(&mut frame)?;
    let theirs = frame.get(place..)?.try_get_u16().ok()?;
    (theirs > VERSION).then(|| versions(theirs))
}

fn put_name(out: &mut BytesMut, name: &str) {
    out.put_u8(u8::try_from(name.len()).expect("an ensemble's name has at most 64 bytes"));
    out.put_slice(name.as_bytes());
}

fn take_name(frame: &mut Bytes) -> Option<String> {
    let length = usize::from(frame.try_get_u8().ok()?);
    let name = (frame.len() >= length).then(|| frame.split_to(length))?;
    String::from_utf8(name.into()).ok()
}

fn take_servers(frame: &mut Bytes) -> Option<Vec<ServerId>> {
    let count = frame.try_get_u8().ok()?;
    (0..count).map(|_| ServerId::new(frame.try_get_u8().ok()?)).collect()
}

fn take_magic(frame: &mut Bytes) -> Option<()> {
    (frame.len() >= MAGIC.len() && frame.split_to(MAGIC.len()) == MAGIC[..]).then_some(())
}

/// Reads exactly one frame, and not a byte more.
async fn read_frame(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut received = BytesMut::with_capacity(HANDSHAKE_BYTES);
    loop {
        match next_frame(&mut received, HANDSHAKE_BYTES) {
            Ok(Some(frame)) if received.is_empty() => return Ok(frame),
            Ok(Some(_)) => return Err(invalid("it says more than its handshake".into())),
            Ok(None) => {}
            Err(_) => return Err(invalid("it does not speak Conclave's protocol".into())),
        }
        if socket.read_buf(&mut received).await? == 0 {
            let why = "it closed the connection in the handshake";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
    }
}

/// It is not what was meant.
fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
