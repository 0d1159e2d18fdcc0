//! The audit log: who authenticated, who changed an ACL, which members came and went.
//!
//! One JSON object a line, in files of its own, written by a thread of its own. Nothing waits for it
//! and nothing depends on it: if it cannot keep up or the disk refuses, records are lost, and their
//! number is the next record. It says when, who and what, never a password or a hash of one.
//!
//! The files hold so much and no more, and to claim to be somebody costs nothing: of what one origin
//! claims in a minute, the log has the beginning and a number. Changes of ACLs are all kept, in files
//! of their own: whoever may make many of them pushes nothing but older ones out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use conclave_proto::{Acl, ErrorCode, Identity, ServerId};
use prometheus_client::metrics::counter::Counter;
use serde::{Serialize, Serializer};

use crate::limits::{AUDIT_ATTEMPTS, AUDIT_BURST_BYTES, AUDIT_FILES, AUDIT_ORIGINS, AUDIT_QUEUE};
use crate::net::origin;
use crate::replica::{AclChange, Authentication};

use super::clock::Clock;
use super::settings::AuditSettings;

/// Something that is kept for whoever looks into it later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Record {
    /// The server started, as a member of this ensemble.
    Started { cluster: String, members: Vec<String> },
    /// A member is linked with this one.
    MemberLinked { member: u8 },
    /// It is not any more.
    MemberLost { member: u8 },
    /// Somebody who said that it was a member was turned away.
    MemberRefused { address: String, why: String },
    /// A client has shown who it is.
    Authenticated(Claimed),
    /// A client has claimed to be somebody, and has not shown it.
    AuthenticationFailed(Claimed),
    /// A client asked to change a node's ACL.
    AclChange {
        zxid: String,
        /// When the leader took the request.
        requested: String,
        session: String,
        #[serde(serialize_with = "names")]
        by: Arc<[Identity]>,
        path: String,
        acl: Vec<String>,
        /// Why it was refused; `null`: it was done.
        error: Option<String>,
    },
    /// So many attempts from one origin within a minute are not in the log; `::` stands for all that
    /// are not counted one by one.
    MoreAttempts { address: String, records: u64 },
    /// So many records before this one could not be written.
    Lost { records: u64 },
}

/// Whom a client claims to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Claimed {
    pub(super) address: String,
    pub(super) session: Option<String>,
    pub(super) scheme: String,
    pub(super) id: String,
}

impl Record {
    /// What came of an authentication, as the replica tells it.
    pub(super) fn authentication(told: &Authentication) -> Record {
        let claimed = Claimed {
            address: told.address.clone(),
            session: told.session.map(|session| session.to_string()),
            scheme: told.scheme.clone(),
            id: told.id.clone(),
        };
        match told.accepted {
            true => Record::Authenticated(claimed),
            false => Record::AuthenticationFailed(claimed),
        }
    }

    /// Where an attempt to be somebody came from, if it is one.
    fn attempt(&self) -> Option<IpAddr> {
        let address = match self {
            Record::Authenticated(claimed) | Record::AuthenticationFailed(claimed) => {
                &claimed.address
            }
            Record::MemberRefused { address, .. } => address,
            Record::Started { .. }
            | Record::MemberLinked { .. }
            | Record::MemberLost { .. }
            | Record::AclChange { .. }
            | Record::MoreAttempts { .. }
            | Record::Lost { .. } => return None,
        };
        let port = || address.parse().map(|address: SocketAddr| address.ip());
        Some(address.parse().or_else(|_| port()).map_or(OTHERS, origin))
    }

    /// In which of the files it is.
    fn kind(&self) -> Kind {
        match self {
            Record::AclChange { .. } => Kind::Acls,
            Record::Started { .. }
            | Record::MemberLinked { .. }
            | Record::MemberLost { .. }
            | Record::MemberRefused { .. }
            | Record::Authenticated(_)
            | Record::AuthenticationFailed(_)
            | Record::MoreAttempts { .. }
            | Record::Lost { .. } => Kind::General,
        }
    }

    /// The change of an ACL, as the replica tells it.
    pub(super) fn acl_change(change: &AclChange) -> Record {
        Record::AclChange {
            zxid: change.zxid.to_string(),
            requested: time(change.time_ms),
            session: change.session.to_string(),
            by: change.identities.clone(),
            path: change.path.to_string(),
            acl: change.acl.iter().map(grant).collect(),
            error: change.error.map(|code: ErrorCode| code.to_string()),
        }
    }
}

/// Identities as texts.
fn names<S: Serializer>(identities: &[Identity], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(identities.iter().map(identity))
}

fn identity(Identity { scheme, id }: &Identity) -> String {
    format!("{scheme}:{id}")
}

fn grant(line: &Acl) -> String {
    format!("{}:{:05b}", identity(&line.identity), line.perms.0)
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    server: u8,
    #[serde(flatten)]
    record: &'a Record,
}

/// Takes records. Cheap to clone; without a file, records are dropped.
#[derive(Clone, Debug)]
pub(super) struct Audit(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    queue: SyncSender<(i64, Record)>,
    lost: Arc<AtomicU64>,
    counter: Counter,
}

impl Audit {
    /// Begins to write, or to drop everything if the settings have no file.
    ///
    /// # Errors
    /// If the file or the thread cannot be created.
    pub(super) fn start(
        settings: Option<&AuditSettings>,
        server: ServerId,
        clock: Clock,
        counter: Counter,
    ) -> io::Result<Audit> {
        let Some(settings) = settings else { return Ok(Audit(None)) };
        let (queue, records) = sync_channel(AUDIT_QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let most_bytes = settings.max_bytes / (2 * AUDIT_FILES) as u64;
        let general = Book::open(&settings.file, most_bytes)?;
        let acls = Book::open(&beside(&settings.file), most_bytes)?;
        let attempts = Attempts::default();
        let server = server.get();
        let writer = Writer { server, general, acls, attempts, lost: lost.clone(), clock };
        thread::Builder::new().name("audit".into()).spawn(move || writer.run(&records))?;
        Ok(Audit(Some(Arc::new(Inner { clock, queue, lost, counter }))))
    }

    /// Keeps a record, now.
    pub(super) fn record(&self, record: Record) {
        let Some(inner) = &self.0 else { return };
        let entry = (inner.clock.time_of_day_ms(), record);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            inner.queue.try_send(entry)
        {
            inner.lost.fetch_add(1, Ordering::Relaxed);
            inner.counter.inc();
        }
    }
}

/// What has files of its own, so that nothing else pushes it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    General,
    Acls,
}

/// The file for changes of ACLs: beside `audit.log` it is `audit.acl.log`.
fn beside(file: &Path) -> PathBuf {
    let mut extension = OsString::from("acl");
    if let Some(old) = file.extension() {
        extension.push(".");
        extension.push(old);
    }
    file.with_extension(extension)
}

/// The end that writes.
struct Writer {
    server: u8,
    general: Book,
    acls: Book,
    attempts: Attempts,
    lost: Arc<AtomicU64>,
    clock: Clock,
}

impl Writer {
    fn run(mut self, records: &Receiver<(i64, Record)>) {
        loop {
            let mut next = match records.recv_timeout(MINUTE) {
                Ok(next) => Some(next),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now_ms = self.clock.time_of_day_ms();
            for (origin, records) in self.attempts.end_of_minute(now_ms) {
                self.put(now_ms, &Record::MoreAttempts { address: origin.to_string(), records });
            }
            while let Some((time_ms, record)) = next {
                if record.attempt().is_none_or(|origin| self.attempts.admit(origin)) {
                    self.put(time_ms, &record);
                }
                let waiting = self.general.page.text.len() + self.acls.page.text.len();
                let has_room = waiting < AUDIT_BURST_BYTES;
                next = if has_room { records.try_recv().ok() } else { None };
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                self.put(self.clock.time_of_day_ms(), &Record::Lost { records: lost });
            }
            for book in [&mut self.general, &mut self.acls] {
                let Page { text, records } = std::mem::take(&mut book.page);
                if let Err(error) = book.write(&text) {
                    let file = book.path.display();
                    tracing::warn!(%file, %error, "cannot write the audit log");
                    self.lost.fetch_add(records, Ordering::Relaxed);
                }
            }
        }
    }

    fn put(&mut self, time_ms: i64, record: &Record) {
        let line = Line { time: time(time_ms), server: self.server, record };
        let page = match record.kind() {
            Kind::General => &mut self.general.page,
            Kind::Acls => &mut self.acls.page,
        };
        serde_json::to_writer(&mut page.text, &line).expect("a record is plain data");
        page.text.push(b'\n');
        page.records += if let Record::Lost { records } = record { *records } else { 1 };
    }
}

/// What is to be written next.
#[derive(Debug, Default)]
struct Page {
    text: Vec<u8>,
    /// For how many records it stands.
    records: u64,
}

const MINUTE: Duration = Duration::from_secs(60);
/// Stands for the origins that are not counted one by one.
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The attempts of the present minute, by origin.
#[derive(Debug, Default)]
struct Attempts {
    minute: i64,
    counts: BTreeMap<IpAddr, u64>,
}

impl Attempts {
    /// Counts an attempt. Whether it is kept.
    fn admit(&mut self, origin: IpAddr) -> bool {
        let known = self.counts.contains_key(&origin) || self.counts.len() < AUDIT_ORIGINS;
        let count = self.counts.entry(if known { origin } else { OTHERS }).or_default();
        *count += 1;
        *count <= AUDIT_ATTEMPTS
    }

    /// If the minute is over: how many were not kept, by origin.
    fn end_of_minute(&mut self, now_ms: i64) -> Vec<(IpAddr, u64)> {
        let minute = now_ms / 60_000;
        if minute == self.minute {
            return Vec::new();
        }
        self.minute = minute;
        let counts = std::mem::take(&mut self.counts).into_iter();
        let more = counts.map(|(origin, count)| (origin, count.saturating_sub(AUDIT_ATTEMPTS)));
        more.filter(|(_, more)| *more > 0).collect()
    }
}

/// The files: the newest has the name, older ones a number after it.
struct Book {
    path: PathBuf,
    file: File,
    bytes: u64,
    most_bytes: u64,
    page: Page,
}

impl Book {
    fn open(path: &Path, most_bytes: u64) -> io::Result<Book> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(
            |error| {
                io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display()))
            },
        )?;
        let bytes = file.metadata()?.len();
        Ok(Book { path: path.to_owned(), file, bytes, most_bytes, page: Page::default() })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.most_bytes {
            for number in (1..AUDIT_FILES).rev() {
                let older = self.numbered(number);
                let newer = if number == 1 { self.path.clone() } else { self.numbered(number - 1) };
                match fs::rename(newer, older) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            *self = Book::open(&self.path, self.most_bytes)?;
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_attempts_there_is_the_number() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.end_of_minute(60_000), []);
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let kept = (0..AUDIT_ATTEMPTS + 7).filter(|_| attempts.admit(one)).count();
        assert_eq!(kept as u64, AUDIT_ATTEMPTS);
        assert!(attempts.admit(other));
        assert_eq!(attempts.end_of_minute(119_999), []);
        assert_eq!(attempts.end_of_minute(120_000), [(one, 7)]);
        assert!(attempts.admit(one));
        assert_eq!(attempts.end_of_minute(180_000), []);
        // More origins than are told apart.
        for bits in 0..u32::try_from(AUDIT_ORIGINS).unwrap() + 200 {
            attempts.admit(IpAddr::from(bits.to_be_bytes()));
        }
        assert_eq!(attempts.end_of_minute(240_000), [(OTHERS, 100)]);
    }

    #[test]
    fn where_an_attempt_comes_from() {
        let refused = |address: &str| {
            let (address, why) = (address.to_owned(), String::new());
            Record::MemberRefused { address, why }.attempt().unwrap().to_string()
        };
        assert_eq!(refused("10.0.0.1:2181"), "10.0.0.1");
        assert_eq!(refused("10.0.0.1"), "10.0.0.1");
        assert_eq!(refused("[2001:db8::1]:2181"), "2001:db8::");
        assert_eq!(refused(""), "::");
        assert_eq!(Record::Lost { records: 1 }.attempt(), None);
    }

    #[test]
    fn changes_of_acls_are_in_a_file_beside() {
        let of = |file: &str| beside(Path::new(file)).display().to_string();
        assert_eq!(of("/var/audit.log"), "/var/audit.acl.log");
        assert_eq!(of("/var/audit"), "/var/audit.acl");
    }

    #[test]
    fn a_record_is_one_line_and_old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut book = Book::open(&path, 100).unwrap();
        for number in 0..20 {
            book.write(format!("{number:59}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"]);
        assert!(fs::read_to_string(&path).unwrap().ends_with("19\n"));
        assert!(fs::read_to_string(dir.path().join("audit.log.3")).unwrap().ends_with("16\n"));
        // What was there stays when it is opened again.
        Book::open(&path, 100).unwrap().write(b"again\n").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("19\nagain\n"));
    }
}
