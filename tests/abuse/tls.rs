//! Handshakes: those who may not come in, those who never finish, and certificates that change.

use std::fs;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use conclave::limits::TLS_HANDSHAKES_PER_ADDRESS;
use conclave_client::{Acl, Client, Error, ErrorCode, Identity, Perms, Tls};
use rcgen::DnType;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::certificates::{Authority, Claims};
use crate::server::{DEADLINE, Server, fail, wait_for};

fn on_a_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// An authority that has signed for a server and for two clients.
fn authority() -> Authority {
    let authority = Authority::new();
    authority.issue("server", Claims::default());
    let organization = [(DnType::CountryName, "DE"), (DnType::OrganizationName, "Example, Inc.")];
    for name in ["alice", "bob"] {
        let [country, organization] = organization.clone();
        let subject = [country, organization, (DnType::CommonName, name)];
        authority.issue(name, Claims { subject: &subject, ..Claims::default() });
    }
    authority
}

/// A server with the certificate `server`, ready to serve.
fn start(authority: &Authority, more: &[&str]) -> Server {
    let path = |file: &str| authority.path(file).to_str().unwrap().to_owned();
    let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let mut flags = vec!["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    flags.extend(["--zookeeper-secure", "127.0.0.1:0"]);
    flags.extend(more);
    let server = Server::start_with(&flags);
    wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
    server
}

/// How `name` connects.
fn tls(authority: &Authority, name: &str) -> Tls {
    let path = |end: &str| authority.path(&format!("{name}.{end}"));
    Tls::new(authority.path("ca.pem")).certificate(path("pem"), path("key"))
}

async fn connect(server: &Server, tls: Option<Tls>, within: Duration) -> Result<Client, Error> {
    let mut builder = Client::builder();
    if let Some(tls) = tls {
        builder = builder.tls(tls);
    }
    let servers = format!("localhost:{}", server.client.port());
    builder.servers(servers).connect_timeout(within).connect().await
}

/// What a client is told that gets no session.
async fn refused(server: &Server, tls: Option<Tls>) -> String {
    let refused = connect(server, tls, Duration::from_secs(1)).await;
    refused.expect_err("it is not let in").to_string()
}

/// Waits until the other side closes.
fn is_closed(mut socket: TcpStream) {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut rest = Vec::new();
    // What it says before that does not matter, nor whether it resets the connection.
    let read = socket.read_to_end(&mut rest);
    let in_vain = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!in_vain, "it is still open");
}

#[test]
fn who_may_not_come_in_is_told_why() {
    let authority = authority();
    let server = start(&authority, &[]);
    let stranger = self::authority();
    authority.issue("former", Claims { expired: true, ..Claims::default() });
    let ca = || Tls::new(authority.path("ca.pem"));
    let foreign =
        |tls: Tls| tls.certificate(stranger.path("alice.pem"), stranger.path("alice.key"));
    on_a_runtime(async {
        for (tls, reason) in [
            (None, "it speaks TLS"),
            (Some(ca()), "wants to see a certificate of this client"),
            (Some(foreign(ca())), "does not accept this client's certificate"),
            (Some(tls(&authority, "former")), "does not accept this client's certificate"),
            (Some(tls(&stranger, "alice")), "signed by none of the authorities"),
            (Some(tls(&authority, "alice").server_name("other.example")), "server_name"),
        ] {
            let said = refused(&server, tls).await;
            assert!(said.contains(reason), "{said} does not contain {reason}");
        }
        assert_eq!(server.metric("conclave_connections_accepted_total"), 0);
        assert!(server.metric("conclave_tls_handshakes_failed_total") >= 6);
        let client = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
        client.create("/a", "").await.unwrap();
        client.close().await.unwrap();
    });
    // And one who speaks TLS where nobody else does.
    let server = Server::start();
    let said = on_a_runtime(refused(&server, Some(tls(&authority, "alice"))));
    assert!(said.contains("TLS"), "{said}");
}

#[test]
fn a_certificate_says_who_the_client_is() {
    let authority = authority();
    let server = start(&authority, &[]);
    on_a_runtime(async {
        let alice = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
        let bob = connect(&server, Some(tls(&authority, "bob")), DEADLINE).await.unwrap();
        let id = "CN=alice,O=Example\\, Inc.,C=DE".to_owned();
        let identity = Identity { scheme: "x509".into(), id };
        assert!(alice.who_am_i().await.unwrap().contains(&identity));
        let acl = vec![Acl { perms: Perms::ALL, identity }];
        alice.create("/mine", "x").acl(acl).await.unwrap();
        alice.get("/mine").await.unwrap();
        let error = bob.get("/mine").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NoAuth));
        // What was shown is no news; what was not shown cannot be claimed.
        alice.authenticate("x509", "").await.unwrap();
        assert!(bob.authenticate("x509", "CN=alice,O=Example\\, Inc.,C=DE").await.is_ok());
        let error = bob.get("/mine").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NoAuth));
    });
}

#[test]
fn certificates_are_asked_for_only_if_they_are_wanted() {
    let authority = authority();
    let ca = || Some(Tls::new(authority.path("ca.pem")));
    for auth in ["optional", "none"] {
        let server = start(&authority, &["--tls-client-auth", auth]);
        on_a_runtime(async {
            let nobody = connect(&server, ca(), DEADLINE).await.unwrap();
            let schemes = |of: Vec<Identity>| of.into_iter().map(|i| i.scheme).collect::<Vec<_>>();
            assert!(!schemes(nobody.who_am_i().await.unwrap()).contains(&"x509".into()));
            let error = nobody.authenticate("x509", "CN=alice").await.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::AuthFailed));
            let alice = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
            let known = schemes(alice.who_am_i().await.unwrap()).contains(&"x509".into());
            assert_eq!(known, auth == "optional");
        });
    }
}

/// A connection within TLS, as a client of any kind makes it.
fn dial(authority: &Authority, to: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let certificates = |file: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(authority.path(file)).unwrap().map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.pem"));
    let key = PrivateKeyDer::from_pem_file(authority.path("alice.key")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("alice.pem"), key)
        .unwrap();
    let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    StreamOwned::new(session, socket)
}

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn receive(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn zookeepers_clients_have_a_port_with_tls_and_are_known_by_their_certificates() {
    let authority = authority();
    let server = start(&authority, &[]);
    let mut stream = dial(&authority, server.zookeeper_secure.unwrap());
    let timeout = 10_000_i32.to_be_bytes();
    let hello = frame(&[&[0; 12], &timeout, &[0; 8], &16_i32.to_be_bytes(), &[0; 16], &[0]]);
    stream.write_all(&hello).unwrap();
    assert_eq!(receive(&mut stream).len(), 37);
    stream.write_all(&frame(&[&1_i32.to_be_bytes(), &107_i32.to_be_bytes()])).unwrap();
    let who = String::from_utf8_lossy(&receive(&mut stream)).into_owned();
    assert!(who.contains("x509") && who.contains("CN=alice,O=Example\\, Inc.,C=DE"), "{who:?}");
    // Plaintext has no place there.
    let mut plain = TcpStream::connect(server.zookeeper_secure.unwrap()).unwrap();
    plain.write_all(&hello).unwrap();
    is_closed(plain);
}

#[test]
fn half_a_handshake_disturbs_nobody() {
    let authority = authority();
    let server = start(&authority, &[]);
    let silent = TcpStream::connect(server.client).unwrap();
    let mut half = TcpStream::connect(server.client).unwrap();
    // A record of 512 bytes, of which 60 come.
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).unwrap();
    half.write_all(&[7; 49]).unwrap();
    on_a_runtime(async {
        let client = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
        client.create("/a", "").await.unwrap();
        client.close().await.unwrap();
    });
    is_closed(silent);
    is_closed(half);
    server.wait_for_metric("conclave_tls_handshakes_failed_total", 2);
}

#[test]
fn handshakes_that_never_finish_keep_nobody_out_for_long() {
    let authority = authority();
    let server = start(&authority, &[]);
    on_a_runtime(async {
        let witness = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
        let more = 100;
        let crowd: Vec<_> = (0..TLS_HANDSHAKES_PER_ADDRESS + more)
            .map(|_| TcpStream::connect(server.client).unwrap())
            .collect();
        server.wait_for_metric("conclave_tls_handshakes_refused_total", more as u64);
        // Who is connected does not notice, and who comes gets in when the others had their time.
        witness.create("/a", "").await.unwrap();
        let late = connect(&server, Some(tls(&authority, "bob")), DEADLINE).await.unwrap();
        late.get("/a").await.unwrap();
        let failed = TLS_HANDSHAKES_PER_ADDRESS as u64;
        server.wait_for_metric("conclave_tls_handshakes_failed_total", failed);
        assert!(witness.state().is_connected());
        drop(crowd);
    });
}

/// The certificate that a server shows.
fn shown(authority: &Authority, server: &Server) -> Vec<u8> {
    let mut stream = dial(authority, server.client);
    stream.flush().unwrap();
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn on_disk(authority: &Authority, file: &str) -> Vec<u8> {
    CertificateDer::from_pem_file(authority.path(file)).unwrap().to_vec()
}

#[test]
fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let authority = authority();
    let server = start(&authority, &[]);
    let shown = || shown(&authority, &server);
    let on_disk = |file: &str| on_disk(&authority, file);
    on_a_runtime(async {
        let client = connect(&server, Some(tls(&authority, "alice")), DEADLINE).await.unwrap();
        let first = shown();
        assert_eq!(first, on_disk("server.pem"));
        authority.issue("server", Claims::default());
        server.wait_for_metric("conclave_certificates_reloaded_total", 1);
        let second = shown();
        assert_ne!(first, second);
        assert_eq!(second, on_disk("server.pem"));
        // A key that belongs to another certificate, then none at all, then one that has ended.
        fs::copy(authority.path("alice.key"), authority.path("server.key")).unwrap();
        server.wait_for_metric("conclave_certificates_rejected_total", 1);
        fs::write(authority.path("server.key"), "no key").unwrap();
        server.wait_for_metric("conclave_certificates_rejected_total", 2);
        authority.issue("server", Claims { expired: true, ..Claims::default() });
        server.wait_for_metric("conclave_certificates_rejected_total", 3);
        assert_eq!(shown(), second, "the earlier one stays");
        let log = server.log();
        assert!(log.contains("the earlier certificate stays in use"), "{log}");
        assert!(log.contains("server.pem") && log.contains("has expired"), "{log}");
        // Connections that are there notice nothing of all this.
        client.create("/a", "").await.unwrap();
        let days = server.get("/metrics");
        assert!(days.contains("conclave_certificate_days_left{of=\"clients\"}"), "{days}");
    });
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_taken_when_it_is() {
    let authority = authority();
    let server = start(&authority, &[]);
    // Later than the files are looked at twice.
    let soon = Duration::from_secs(UnixTime::now().as_secs() + 6);
    authority.issue("server", Claims { not_before: Some(soon), ..Claims::default() });
    server.wait_for_metric("conclave_certificates_reloaded_total", 1);
    assert_eq!(shown(&authority, &server), on_disk(&authority, "server.pem"));
    assert_eq!(server.log().matches("is not valid yet").count(), 1, "{}", server.log());
    assert_eq!(server.metric("conclave_certificates_rejected_total"), 1);
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let authority = authority();
    authority.issue("expired", Claims { expired: true, ..Claims::default() });
    fs::write(authority.path("empty.pem"), "").unwrap();
    let path = |file: &str| authority.path(file).to_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    for (cert, key, ca, words) in [
        ("nothing.pem", "server.key", "ca.pem", ["nothing.pem", "No such file"]),
        ("empty.pem", "server.key", "ca.pem", ["empty.pem", "no certificate"]),
        ("server.pem", "ca.pem", "ca.pem", ["ca.pem", "private key"]),
        ("server.pem", "alice.key", "ca.pem", ["server.pem", "belong together"]),
        ("server.pem", "server.key", "empty.pem", ["empty.pem", "no certificate"]),
        ("expired.pem", "expired.key", "ca.pem", ["expired.pem", "has expired"]),
    ] {
        let files = [path(cert), path(key), path(ca)];
        let [cert, key, ca] = &files;
        let flags = ["--client", "127.0.0.1:0", "--no-admin", "--tls-cert", cert];
        let flags = [&flags[..], &["--tls-key", key, "--tls-ca", ca]].concat();
        let (status, said) = fail(&dir.path().join("d"), &flags);
        assert_eq!(status.code(), Some(78), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} does not contain {words:?}");
    }
    // A member's certificate names it.
    let files = [path("server.pem"), path("server.key"), path("ca.pem")];
    let [cert, key, ca] = &files;
    let flags = ["--client", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--no-admin"];
    let members = ["--member", "1=127.0.0.1:1", "--member", "2=127.0.0.1:2"];
    let tls = ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca];
    let (status, said) = fail(&dir.path().join("d"), &[&flags[..], &members, &tls].concat());
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(said.contains("URI:conclave://conclave/1"), "{said}");
    assert!(!dir.path().join("d").exists(), "nothing is touched before the files are right");
}
