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
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use conclave_proto::{Acl, ErrorCode, Identity, ServerId};
use prometheus_client::metrics::counter::Counter;
use serde::{Serialize, Serializer};

use crate::limits::{
    AUDIT_ATTEMPTS, AUDIT_BURST_BYTES, AUDIT_FILES, AUDIT_ORIGINS, AUDIT_QUEUE, AUDIT_QUEUE_BYTES,
};
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

    /// How much of the memory it takes, about.
    fn bytes(&self) -> usize {
        let texts = match self {
            Record::Started { cluster, members } => cluster.len() + total(members, String::len),
            Record::MemberRefused { address, why } => address.len() + why.len(),
            Record::Authenticated(claimed) | Record::AuthenticationFailed(claimed) => {
                let Claimed { address, session, scheme, id } = claimed;
                let session = session.as_ref().map_or(0, String::len);
                address.len() + session + scheme.len() + id.len()
            }
            Record::AclChange { zxid, requested, session, by, path, acl, error } => {
                let by = total(by, |Identity { scheme, id }| scheme.len() + id.len());
                let error = error.as_ref().map_or(0, String::len);
                let place = zxid.len() + requested.len() + session.len() + path.len();
                place + by + total(acl, String::len) + error
            }
            Record::MoreAttempts { address, .. } => address.len(),
            Record::MemberLinked { .. } | Record::MemberLost { .. } | Record::Lost { .. } => 0,
        };
        size_of::<Entry>() + texts
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

/// The sizes of several, with what each takes besides.
fn total<T>(of: &[T], bytes: impl Fn(&T) -> usize) -> usize {
    of.iter().map(|one| size_of::<T>() + bytes(one)).sum()
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
    queue: SyncSender<Entry>,
    waiting: Arc<AtomicUsize>,
    lost: Lost,
}

/// A record that waits to be written.
#[derive(Debug)]
struct Entry {
    time_ms: i64,
    bytes: usize,
    record: Record,
}

/// The records that could not be written.
#[derive(Clone, Debug)]
struct Lost {
    /// Those of which the log does not tell yet.
    untold: Arc<AtomicU64>,
    counter: Counter,
}

impl Lost {
    fn add(&self, records: u64) {
        self.untold.fetch_add(records, Ordering::Relaxed);
        self.counter.inc_by(records);
    }
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
        let waiting = Arc::new(AtomicUsize::new(0));
        let lost = Lost { untold: Arc::default(), counter };
        let most_bytes = settings.max_bytes / (2 * AUDIT_FILES) as u64;
        let general = Book::open(&settings.file, most_bytes)?;
        let acls = Book::open(&beside(&settings.file), most_bytes)?;
        let attempts = Attempts::default();
        let server = server.get();
        let (taken, untold) = (waiting.clone(), lost.clone());
        let writer =
            Writer { server, general, acls, attempts, waiting: taken, lost: untold, clock };
        thread::Builder::new().name("audit".into()).spawn(move || writer.run(&records))?;
        Ok(Audit(Some(Arc::new(Inner { clock, queue, waiting, lost }))))
    }

    /// Keeps a record, now.
    pub(super) fn record(&self, record: Record) {
        let Some(inner) = &self.0 else { return };
        let bytes = record.bytes();
        let entry = Entry { time_ms: inner.clock.time_of_day_ms(), bytes, record };
        let before = inner.waiting.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > AUDIT_QUEUE_BYTES || inner.queue.try_send(entry).is_err() {
            inner.waiting.fetch_sub(bytes, Ordering::Relaxed);
            inner.lost.add(1);
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
    waiting: Arc<AtomicUsize>,
    lost: Lost,
    clock: Clock,
}

impl Writer {
    fn run(mut self, records: &Receiver<Entry>) {
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
            while let Some(Entry { time_ms, bytes, record }) = next {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                if record.attempt().is_none_or(|origin| self.attempts.admit(origin)) {
                    self.put(time_ms, &record);
                }
                let burst = self.general.page.text.len() + self.acls.page.text.len();
                let has_room = burst < AUDIT_BURST_BYTES;
                next = if has_room { records.try_recv().ok() } else { None };
            }
            let lost = self.lost.untold.swap(0, Ordering::Relaxed);
            if lost > 0 {
                self.put(self.clock.time_of_day_ms(), &Record::Lost { records: lost });
            }
            for book in [&mut self.general, &mut self.acls] {
                let Page { text, records, lost } = std::mem::take(&mut book.page);
                if let Err(error) = book.write(&text) {
                    let file = book.path.display();
                    tracing::warn!(%file, %error, "cannot write the audit log");
                    self.lost.add(records);
                    self.lost.untold.fetch_add(lost, Ordering::Relaxed);
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
        if let Record::Lost { records } = record {
            page.lost += records;
        } else {
            page.records += 1;
        }
    }
}

/// What is to be written next.
#[derive(Debug, Default)]
struct Page {
    text: Vec<u8>,
    records: u64,
    /// Of how many lost ones it tells.
    lost: u64,
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
    /// The file does not end with a line, but with a part of one.
    is_torn: bool,
    most_bytes: u64,
    page: Page,
}

impl Book {
    fn open(path: &Path, most_bytes: u64) -> io::Result<Book> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path).map_err(
            |error| {
                io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display()))
            },
        )?;
        let (path, page) = (path.to_owned(), Page::default());
        let mut book = Book { path, file, bytes: 0, is_torn: false, most_bytes, page };
        book.look()?;
        Ok(book)
    }

    /// Finds out how the file ends, which a crash or an error may have decided.
    fn look(&mut self) -> io::Result<()> {
        self.bytes = self.file.metadata()?.len();
        self.is_torn = match self.bytes.checked_sub(1) {
            None => false,
            Some(last) => {
                let mut end = [0];
                self.file.read_exact_at(&mut end, last)?;
                end != *b"\n"
            }
        };
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.most_bytes {
            self.turn_over()?;
        }
        let written = self.append(text);
        if written.is_err() {
            // A line too many does no harm.
            self.is_torn = true;
            self.look().ok();
        }
        written
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.bytes += 1;
            self.is_torn = false;
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Begins a new file. The others move on up to the first name that is free, so that no older one
    /// goes if this is tried again after an error.
    fn turn_over(&mut self) -> io::Result<()> {
        let mut free = 0;
        while free + 1 < AUDIT_FILES && self.numbered(free).try_exists()? {
            free += 1;
        }
        for number in (1..=free).rev() {
            fs::rename(self.numbered(number - 1), self.numbered(number))?;
        }
        *self = Book::open(&self.path, self.most_bytes)?;
        Ok(())
    }

    /// The file with a number; the newest has none.
    fn numbered(&self, number: usize) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

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

    #[test]
    fn no_older_file_goes_for_one_that_was_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut book = Book::open(&path, 100).unwrap();
        for number in 0..4 {
            book.write(format!("{number:99}\n").as_bytes()).unwrap();
        }
        let older = |number: usize| fs::read_to_string(book.numbered(number)).unwrap();
        let kept = [1, 2].map(older);
        // As if it had moved on, and another could not be opened.
        fs::remove_file(book.numbered(3)).unwrap();
        for number in [2, 1, 0] {
            fs::rename(book.numbered(number), book.numbered(number + 1)).unwrap();
        }
        book.write(b"next\n").unwrap();
        let found = [2, 3].map(|number| fs::read_to_string(book.numbered(number)).unwrap());
        assert_eq!(found, kept);
        assert_eq!(fs::read_to_string(&path).unwrap(), "next\n");
    }

    #[test]
    fn a_torn_line_is_not_joined_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for (before, after) in [("", "b\n"), ("a\n", "a\nb\n"), ("a\nto", "a\nto\nb\n")] {
            fs::write(&path, before).unwrap();
            let mut book = Book::open(&path, 100).unwrap();
            book.write(b"b\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
    }

    fn refused(bytes: usize) -> Record {
        Record::MemberRefused { address: "::1".into(), why: "x".repeat(bytes) }
    }

    #[test]
    fn a_record_that_the_disk_refuses_is_counted_once() {
        let (queue, records) = sync_channel(AUDIT_QUEUE);
        // Each is as much as is written at once.
        for time_ms in 0..3 {
            queue.send(Entry { time_ms, bytes: 0, record: refused(AUDIT_BURST_BYTES) }).unwrap();
        }
        drop(queue);
        let full = || Book::open(Path::new("/dev/full"), u64::MAX).unwrap();
        let lost = Lost { untold: Arc::default(), counter: Counter::default() };
        let writer = Writer {
            server: 1,
            general: full(),
            acls: full(),
            attempts: Attempts::default(),
            waiting: Arc::default(),
            lost: lost.clone(),
            clock: Clock::start(),
        };
        writer.run(&records);
        assert_eq!(lost.counter.get(), 3);
        assert_eq!(lost.untold.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_waits_for_a_slow_disk_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        // Nobody reads what is written there.
        let made = Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        let (settings, lost) = (AuditSettings { file, max_bytes: 1 << 40 }, Counter::default());
        let server = ServerId::new(1).unwrap();
        let audit = Audit::start(Some(&settings), server, Clock::start(), lost.clone()).unwrap();
        let most = AUDIT_QUEUE_BYTES >> 20;
        for _ in 0..2 * most {
            audit.record(refused(1 << 20));
        }
        let kept = 2 * most as u64 - lost.get();
        // One more is being written.
        assert!((1..=most as u64 + 1).contains(&kept), "{kept}");
    }
}
