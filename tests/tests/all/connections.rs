//! Ways to connect, and what each failure to is called.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use holdfast_local::proxy::{Proxy, ProxyOptions};
use holdfast_local::secrets::SecretsServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bed::{BUCKET, Bed};

async fn bed(major: u16) -> Bed {
    let bed = Bed::start(major).await;
    fill(&bed).await;
    bed
}

async fn fill(bed: &Bed) {
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster.execute("source", "CREATE TABLE t (x int); INSERT INTO t VALUES (1), (2)").await.unwrap();
}

fn nothing_is_left(bed: &Bed) {
    assert!(bed.manifests().is_empty(), "{:?}", bed.manifests());
    assert!(bed.store().pending_uploads(BUCKET).is_empty(), "{:?}", bed.store().pending_uploads(BUCKET));
}

/// Exports with these settings and expects this code, and no word of any password.
async fn fails(bed: &Bed, settings: &[(&str, &str)], code: &str) -> String {
    bed.register_export("source", settings);
    let outcome = bed.invoke(json!({})).await;
    assert_eq!(outcome.payload["errorType"], code, "{settings:?}: {:#}\n{}", outcome.payload, outcome.log.join("\n"));
    let told = format!("{} {}", outcome.payload, outcome.log.join("\n"));
    assert!(
        !told.contains("hunter2") && !told.contains(bed.cluster.password()) || bed.cluster.password() == "holdfast",
        "{told}"
    );
    assert!(!told.contains("hunter2"), "{told}");
    nothing_is_left(bed);
    outcome.payload["errorMessage"].as_str().unwrap().to_owned()
}

fn unused_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_code() {
    let bed = bed(16).await;
    fails(&bed, &[("DATABASE_URL", &bed.cluster.url_as("postgres", "hunter2", "source"))], "database-login-rejected")
        .await;
    fails(&bed, &[("DATABASE_URL", &bed.cluster.url_as("nobody", "hunter2", "source"))], "database-login-rejected")
        .await;
    let message = fails(&bed, &[("DATABASE_URL", &bed.cluster.url("nosuch"))], "database-missing").await;
    assert!(message.contains("nosuch"), "{message}");
    let down = format!("postgres://postgres:hunter2@127.0.0.1:{}/source", unused_port());
    let message = fails(&bed, &[("DATABASE_URL", &down)], "database-unreachable").await;
    assert!(message.contains("127.0.0.1"), "{message}");
    fails(
        &bed,
        &[("DATABASE_URL", "postgres://postgres:hunter2@no-such-host.invalid/source?sslmode=disable")],
        "database-unreachable",
    )
    .await;
    fails(&bed, &[("DATABASE_URL", "postgres://postgres:hunter2@127.0.0.1:x/source")], "database-settings").await;
    fails(&bed, &[("PG_SSLMODE", "require")], "database-tls-refused").await;
    fails(&bed, &[("PG_SSLMODE", "verify-full")], "database-ca-bundle").await;
    fails(&bed, &[("PG_DUMP", "/no/such/pg_dump")], "pg-dump-missing").await;
    fails(&bed, &[("PG_DUMP", "/bin/true")], "pg-dump-missing").await;
    let old = Installation::client(15).unwrap().tool("pg_dump");
    let message = fails(&bed, &[("PG_DUMP", &old.display().to_string())], "pg-dump-too-old").await;
    assert!(message.contains("pg_dump 15.") && message.contains("version 16."), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_passwords_and_sockets() {
    let bed = bed(15).await;
    let (role, password, database) = ("bäck=up \"x\"", "p@ss/w:rd%20 #?&ü=+'\\", "we=ird \"db\"/x?");
    let sql = format!(
        "CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}",
        holdfast_shared::domain::table::quote_identifier(role),
        holdfast_shared::domain::table::quote_literal(password)
    );
    bed.cluster.execute("postgres", &sql).await.unwrap();
    bed.cluster.create_database(database).await.unwrap();
    bed.cluster.execute(database, "CREATE TABLE here (x int)").await.unwrap();
    bed.register_export(database, &[("DATABASE_URL", &bed.cluster.url_as(role, password, database))]);
    let receipt = bed.export(json!({})).await;
    assert_eq!((&receipt["tables"], &receipt["database"]), (&json!(1), &json!(database)));

    let socket = bed.cluster.socket_directory().display().to_string();
    let (port, password) = (bed.cluster.port(), bed.cluster.password());
    let encoded = socket.replace('/', "%2F");
    for url in [
        format!("postgres://postgres:{password}@{encoded}:{port}/source"),
        format!("postgres://postgres:{password}@/source?host={encoded}&port={port}"),
        format!("host={socket} port={port} user=postgres password={password} dbname=source"),
    ] {
        bed.register_export("source", &[("DATABASE_URL", &url)]);
        assert_eq!(bed.export(json!({})).await["rows"], 2, "{url}");
    }
    let url = format!("postgres://postgres:{password}@{encoded}:1/source");
    assert!(bed.invoke(json!({})).await.function_error.is_none());
    bed.register_export("source", &[("DATABASE_URL", &url)]);
    assert_eq!(bed.export_fails(json!({})).await.0, "database-unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_connections_than_workers() {
    let bed = bed(15).await;
    let sql = "CREATE ROLE few LOGIN SUPERUSER PASSWORD 'few' CONNECTION LIMIT 3;
        DO $$ BEGIN FOR i IN 1..6 LOOP
            EXECUTE format('CREATE TABLE wide_%s (t text)', i); EXECUTE format('ALTER TABLE wide_%s ALTER t SET STORAGE EXTERNAL', i);
            EXECUTE format('INSERT INTO wide_%s VALUES (repeat(''x'', 5000000))', i); END LOOP; END $$";
    bed.cluster.execute("source", sql).await.unwrap();
    // Limits do not bind superusers.
    let sql = "ALTER ROLE few NOSUPERUSER; GRANT pg_read_all_data TO few";
    bed.cluster.execute("source", sql).await.unwrap();
    let url = bed.cluster.url_as("few", "few", "source");
    let settings = [("DATABASE_URL", url.as_str()), ("WORKERS", "6")];
    bed.register_export("source", &settings);
    let receipt = bed.export(json!({})).await;
    assert_eq!(receipt["tables"], 7);
    assert!(receipt["warnings"][0].as_str().unwrap().contains("fewer workers"), "{receipt:#}");
    let count = bed.manifests().len();
    for limit in [1, 0] {
        bed.cluster.execute("source", &format!("ALTER ROLE few CONNECTION LIMIT {limit}")).await.unwrap();
        let (code, message) = bed.export_fails(json!({})).await;
        assert_eq!(code, "database-too-many-connections", "limit {limit}: {message}");
    }
    assert_eq!(bed.manifests().len(), count);
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key for a host name.
    fn server(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// The export's role may come by TLS only, with `pg_dump` too.
#[tokio::test(flavor = "multi_thread")]
async fn tls() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("a stranger"));
    let (certificate, key) = authority.server("localhost");
    let mut cluster = Cluster::start(ClusterOptions::major(15)).await.unwrap();
    cluster
        .set_hba(
            "host all postgres 127.0.0.1/32 scram-sha-256
             hostssl all guest 127.0.0.1/32 trust\nhostssl all exporter 127.0.0.1/32 scram-sha-256\n",
        )
        .unwrap();
    cluster.enable_tls(&certificate, &key).await.unwrap();
    let bed = Bed::with_cluster(cluster).await;
    fill(&bed).await;
    let sql = "CREATE ROLE exporter LOGIN SUPERUSER PASSWORD 'hunter2'; CREATE ROLE guest LOGIN SUPERUSER";
    bed.cluster.execute("source", sql).await.unwrap();
    let write = |name: &str, text: &str| {
        let path = bed.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = write("ca.pem", &authority.issuer.pem());
    let both = write("both.pem", &format!("{}{}", stranger.issuer.pem(), authority.issuer.pem()));
    let other = write("other.pem", &stranger.issuer.pem());
    let empty = write("empty.pem", "");
    let port = bed.cluster.port();
    let by_name = format!("postgres://exporter:hunter2@localhost:{port}/source");
    let by_address = format!("postgres://exporter:hunter2@127.0.0.1:{port}/source");

    for settings in [
        &[("DATABASE_URL", by_name.as_str()), ("PG_SSLMODE", "verify-full"), ("PG_CA_BUNDLE", ca.as_str())][..],
        &[("DATABASE_URL", by_name.as_str()), ("PG_SSLMODE", "verify-full"), ("PG_CA_BUNDLE", both.as_str())],
        &[("DATABASE_URL", &format!("{by_name}?sslmode=verify-full&sslrootcert={}", ca.replace('/', "%2F")))],
        &[("DATABASE_URL", by_address.as_str()), ("PG_SSLMODE", "require")],
    ] {
        bed.register_export("source", settings);
        assert_eq!(bed.export(json!({})).await["rows"], 2, "{settings:?}");
    }
    // A login by IAM is one by token, as a password, to a host that configuration names.
    let port_text = port.to_string();
    bed.register_export(
        "source",
        &[
            ("DATABASE_URL", ""),
            ("DATABASE_AUTH", "iam"),
            ("DATABASE_USER", "guest"),
            ("DATABASE_HOST", "localhost"),
            ("DATABASE_PORT", &port_text),
            ("DATABASE_NAME", "source"),
            ("PG_SSLMODE", "verify-full"),
            ("PG_CA_BUNDLE", &ca),
        ],
    );
    assert_eq!(bed.export(json!({})).await["rows"], 2);

    let listed = bed.manifests().len();
    for (url, bundle, code) in [
        (&by_name, &other, "database-tls-failed"),
        (&by_address, &ca, "database-tls-failed"),
        (&by_name, &empty, "database-ca-bundle"),
        (&by_name, &"/no/such/file".to_owned(), "database-ca-bundle"),
    ] {
        let settings =
            [("DATABASE_URL", url.as_str()), ("PG_SSLMODE", "verify-full"), ("PG_CA_BUNDLE", bundle.as_str())];
        bed.register_export("source", &settings);
        let (found, message) = bed.export_fails(json!({})).await;
        assert_eq!(found, code, "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    // Without TLS the server refuses the role.
    bed.register_export("source", &[("DATABASE_URL", &by_address)]);
    assert_eq!(bed.export_fails(json!({})).await.0, "database-login-rejected");
    assert_eq!(bed.manifests().len(), listed);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets() {
    let bed = bed(15).await;
    let (port, password) = (bed.cluster.port(), bed.cluster.password());
    let arn = |name: &str| format!("arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}");
    let rds = |port: Value| {
        json!({"username": "postgres", "password": password, "engine": "postgres", "host": "127.0.0.1", "port": port,
               "dbname": "source", "dbInstanceIdentifier": "shop"})
        .to_string()
    };
    let server = SecretsServer::start().await.unwrap();
    for (arn, text) in [
        (arn("number"), rds(json!(port))),
        (arn("string"), rds(json!(port.to_string()))),
        (arn("managed"), json!({"username": "postgres", "password": password}).to_string()),
        (arn("rotated"), rds(json!(port)).replace(password, "hunter2")),
        (arn("broken"), r#"{"password": "hunter2""#.to_owned()),
        (arn("portless"), rds(json!("hunter2"))),
        (arn("store"), json!({"access_key_id": "export-role", "secret_access_key": "export-role-secret"}).to_string()),
        (arn("wrong-store"), json!({"access_key_id": "export-role", "secret_access_key": "hunter2"}).to_string()),
    ] {
        server.set(arn, text);
    }
    let port = port.to_string();
    let by_secret = |name: &str| vec![("DATABASE_URL", String::new()), ("DATABASE_SECRET_ARN", arn(name))];
    let register = |settings: Vec<(&str, String)>| {
        let mut settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.push(("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.endpoint()));
        bed.register_export("source", &settings);
    };
    for name in ["number", "string"] {
        register(by_secret(name));
        assert_eq!(bed.export(json!({})).await["rows"], 2, "{name}");
    }
    let mut managed = by_secret("managed");
    register(managed.clone());
    let (code, message) = bed.export_fails(json!({})).await;
    assert!(code == "secret-unreadable" && message.contains("DATABASE_HOST"), "{message}");
    let rest = [("DATABASE_HOST", "127.0.0.1"), ("DATABASE_PORT", &port), ("DATABASE_NAME", "source")];
    managed.extend(rest.map(|(name, value)| (name, value.to_owned())));
    register(managed);
    assert_eq!(bed.export(json!({})).await["rows"], 2);

    for (name, expected) in [
        ("rotated", "database-login-rejected"),
        ("broken", "secret-unreadable"),
        ("portless", "secret-unreadable"),
        ("nosuch", "secret-unreadable"),
    ] {
        register(by_secret(name));
        let outcome = bed.invoke(json!({})).await;
        assert_eq!(outcome.payload["errorType"], expected, "{name}: {:#}", outcome.payload);
        let told = format!("{} {}", outcome.payload, outcome.log.join("\n"));
        assert!(!told.contains("hunter2"), "{told}");
    }

    // The store's credentials by secret; those of the function itself are good for nothing here.
    let listed = bed.manifests().len();
    for (name, works) in [("store", true), ("wrong-store", false)] {
        register(vec![
            ("AWS_ACCESS_KEY_ID", "other".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "other".to_owned()),
            ("S3_CREDENTIALS_SECRET_ARN", arn(name)),
        ]);
        let outcome = bed.invoke(json!({})).await;
        assert_eq!(!outcome.is_error(), works, "{:#}", outcome.payload);
        assert!(!format!("{} {}", outcome.payload, outcome.log.join("\n")).contains("hunter2"));
    }
    assert_eq!(bed.manifests().len(), listed + 1);
}

fn through(bed: &Bed, port: u16) -> String {
    bed.cluster.url("source").replace(&format!(":{}/", bed.cluster.port()), &format!(":{port}/"))
}

fn server_address(bed: &Bed) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, bed.cluster.port()))
}

/// Wherever the connection is cut: an error that says so, nothing listed, nothing pending.
#[tokio::test(flavor = "multi_thread")]
async fn resets() {
    let bed = bed(15).await;
    let sql = "CREATE TABLE wide (id int, t text); ALTER TABLE wide ALTER t SET STORAGE EXTERNAL;
               INSERT INTO wide SELECT g, repeat(md5(g::text), 10000) FROM generate_series(1, 200) g";
    bed.cluster.execute("source", sql).await.unwrap();
    let proxy = Proxy::start(server_address(&bed), ProxyOptions::default()).await.unwrap();
    let url = through(&bed, proxy.addr().port());
    for (workers, bytes) in
        [("1", 20), ("3", 300), ("3", 1_500), ("3", 4_000), ("1", 12_000), ("3", 15_000_000), ("1", 30_000_000)]
    {
        bed.register_export("source", &[("DATABASE_URL", &url), ("WORKERS", workers), ("PART_SIZE_BYTES", "5242880")]);
        proxy.cut_after_bytes(bytes);
        let outcome = bed.invoke(json!({})).await;
        let code = outcome.payload["errorType"].as_str().unwrap_or_else(|| panic!("{bytes}: {:#}", outcome.payload));
        assert!(["database-connection-lost", "database-unreachable"].contains(&code), "{bytes}: {:#}", outcome.payload);
        if bytes > 1_000_000 {
            assert_eq!(code, "database-connection-lost");
        }
        nothing_is_left(&bed);
    }
    proxy.heal();
    assert_eq!(bed.export(json!({})).await["tables"], 2);
}

/// Stands in for a pooler: the process that answers the handshake is not the one that runs the queries.
async fn pooler(target: SocketAddr) -> SocketAddr {
    static FAKE_PID: AtomicI32 = AtomicI32::new(4_000_000);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = TcpStream::connect(target).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                loop {
                    let mut header = [0; 5];
                    if from_server.read_exact(&mut header).await.is_err() {
                        return;
                    }
                    let len = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4;
                    let mut body = vec![0; len];
                    from_server.read_exact(&mut body).await.unwrap();
                    if header[0] == b'K' {
                        body[..4].copy_from_slice(&FAKE_PID.fetch_add(1, Ordering::Relaxed).to_be_bytes());
                    }
                    let _ = to_client.write_all(&[&header[..], &body].concat()).await;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_told_from_the_server() {
    let bed = bed(15).await;
    let address = pooler(server_address(&bed)).await;
    let message = fails(&bed, &[("DATABASE_URL", &through(&bed, address.port()))], "database-pooler").await;
    assert!(message.contains("PgBouncer"), "{message}");
}

/// A slow network: no timeout of ours ends what goes on.
#[tokio::test(flavor = "multi_thread")]
async fn latency() {
    let bed = bed(15).await;
    let options = ProxyOptions { latency: Some(Duration::from_millis(40)), ..ProxyOptions::default() };
    let proxy = Proxy::start(server_address(&bed), options).await.unwrap();
    bed.register_export("source", &[("DATABASE_URL", &through(&bed, proxy.addr().port()))]);
    assert_eq!(bed.export(json!({})).await["rows"], 2);
}
