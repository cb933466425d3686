//! Every major as server, with its own client where there is one: the restored database is the source.

use holdfast_local::postgres::Installation;
use serde_json::json;

use crate::bed::{Bed, run};
use crate::schema;

/// Exports, restores with the stock client, and compares schema and contents with the source.
async fn equals_its_source(major: u16, compression: &str, restore_options: &[&str]) {
    let bed = Bed::start(major).await;
    schema::create(&bed.cluster, "source", 2_000).await;
    bed.register_export("source", &[("COMPRESSION", compression)]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let file = bed.dump_file(&receipt).await;
    let manifest = bed.manifest(&receipt).await;

    let client = Installation::client_at_least(major).unwrap();
    let restorer = restorer(&client, &manifest.artifacts["dump"].compression);
    if client.major == major {
        bed.restore(&restorer, &file, "restored", restore_options).await;
        assert_eq!(bed.contents("restored").await, bed.contents("source").await);
        assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "source"));
    } else {
        // A newer pg_dump's archive is for its own major: restored there (STACK: no client of this major).
        let target = Bed::start(client.major).await;
        target.cluster.execute("postgres", "CREATE ROLE reporting").await.unwrap();
        target.restore(&restorer, &file, "restored", restore_options).await;
        let (mut restored, source) = (target.contents("restored").await, bed.contents("source").await);
        restored.retain(|name, _| source.contains_key(name));
        assert_eq!(restored, source);
    }
    let listed = run(client.command("pg_restore").arg("-l").arg(&file));
    assert!(listed.contains("TABLE DATA app customers"), "{listed}");
    assert_eq!(manifest.server.major, u32::from(major));
    assert_eq!(manifest.artifacts["dump"].pg_restore_major, archive_reader(client.major).max(manifest.server.major));
    assert_eq!(manifest.tables.iter().find(|table| table.name == "customers").unwrap().rows, 2_000);
    assert_eq!(manifest.large_objects.as_ref().unwrap().count, 3);
}

/// The oldest major that reads what a `pg_dump` of this major writes.
fn archive_reader(pg_dump_major: u16) -> u32 {
    match pg_dump_major {
        ..=15 => 12,
        16 => 16,
        _ => 17,
    }
}

/// A client that reads the archive: not every build of 16 and later is built with zstd.
fn restorer(client: &Installation, compression: &str) -> Installation {
    if compression.starts_with("zstd") { Installation::client(17).unwrap() } else { client.clone() }
}

macro_rules! majors {
    ($($name:ident: $major:literal, $compression:literal, $options:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() { equals_its_source($major, $compression, $options).await; })*
    };
}

majors! {
    server_13: 13, "auto", &[];
    server_14: 14, "auto", &["-j", "2"];
    server_15: 15, "auto", &[];
    server_15_in_parallel: 15, "gzip:6", &["-j", "3"];
    server_15_uncompressed: 15, "none", &[];
    server_16: 16, "gzip:1", &["-j", "2"];
    server_17: 17, "auto", &[];
    server_18: 18, "auto", &["-j", "2"];
    server_18_gzip: 18, "gzip:1", &[];
}
