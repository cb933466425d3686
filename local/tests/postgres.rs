//! PostgreSQL servers of our own: started, stopped, killed, followed by a standby.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Instant;

use holdfast_local::postgres::{Cluster, ClusterOptions, Installation, PostgresError, StopMode};

async fn one(cluster: &Cluster, sql: &str) -> String {
    cluster.connect("postgres").await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_asks_for_its_password_and_keeps_data_over_restart_and_kill() {
    let password = "p@ss/wörd:1'".to_owned();
    let options = ClusterOptions { password, ..ClusterOptions::default() }.setting("work_mem", "9MB");
    let mut cluster = Cluster::start(options).await.unwrap();
    assert_eq!(one(&cluster, "show work_mem").await, "9MB");
    assert_eq!(one(&cluster, "show server_encoding").await, "UTF8");
    let wrong = tokio_postgres::connect(&cluster.url_as("postgres", "guess", "postgres"), tokio_postgres::NoTls).await;
    assert!(wrong.err().unwrap().as_db_error().unwrap().message().contains("password authentication failed"));

    cluster.create_database("weird \"name\"").await.unwrap();
    cluster.execute("weird \"name\"", "create table kept as select 1 as one").await.unwrap();
    let port = cluster.port();
    cluster.restart().await.unwrap();
    cluster.execute("weird \"name\"", "select one from kept").await.unwrap();
    cluster.stop(StopMode::Immediate).await.unwrap();
    assert!(!cluster.is_running() && cluster.connect("postgres").await.is_err());
    cluster.start_again().await.unwrap();
    let _open = cluster.connect("postgres").await.unwrap();
    cluster.kill().await.unwrap();
    cluster.start_again().await.unwrap();
    assert_eq!(cluster.port(), port);
    cluster.execute("weird \"name\"", "select one from kept").await.unwrap();

    let data = cluster.data_directory();
    drop(cluster);
    assert!(!data.exists());
}

#[tokio::test]
async fn every_server_on_this_machine_starts_and_has_a_standby() {
    let majors = Installation::server_majors();
    assert!(!majors.is_empty());
    for major in majors {
        let began = Instant::now();
        let mut primary = Cluster::start(ClusterOptions::major(major)).await.unwrap();
        let started = began.elapsed();
        assert!(one(&primary, "select version()").await.starts_with(&format!("PostgreSQL {major}")));
        primary.execute("postgres", "create table t as select generate_series(1, 1000) as n").await.unwrap();
        let standby = primary.standby().await.unwrap();
        primary.execute("postgres", "insert into t values (0)").await.unwrap();
        standby.catch_up_with(&primary).await.unwrap();
        assert_eq!(one(&standby, "select count(*)::text from t").await, "1001");
        assert_eq!(one(&standby, "select pg_is_in_recovery()::text").await, "true");
        eprintln!("PostgreSQL {major}: started in {started:?}, with standby in {:?}", began.elapsed());
        primary.stop(StopMode::Fast).await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_can_demand_tls() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    cluster.set_hba("hostssl all all 127.0.0.1/32 scram-sha-256\n").unwrap();
    cluster.enable_tls(&key.cert.pem(), &key.signing_key.serialize_pem()).await.unwrap();
    let plain = cluster.connect("postgres").await.err().unwrap();
    let PostgresError::Sql { source } = plain else { panic!("{plain}") };
    assert!(source.as_db_error().unwrap().message().contains("no encryption"), "{source:?}");

    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, key.cert.pem()).unwrap();
    let port = cluster.port();
    let target = format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=postgres password=holdfast sslmode=verify-full sslrootcert={}",
        authority.display()
    );
    // Debian's psql: the others here are built without TLS.
    let psql = Installation::find_any().unwrap().tool("psql");
    let output = std::process::Command::new(psql).args(["-Atc", "select 1", &target]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_not_installed_is_named() {
    let error = Installation::server(12).unwrap_err();
    assert!(matches!(&error, PostgresError::NotInstalled { what, .. } if what == "12 server"), "{error}");
    let client = Installation::client_at_least(13).unwrap();
    assert!(client.major >= 13 && client.tool("pg_dump").is_file());
}
