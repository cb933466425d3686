//! Our own restore, engine only: the database it makes is the source, and what stock `pg_restore` makes; damage is told
//! by table and leaves no database behind.

use holdfast_local::postgres::Installation;
use holdfast_shared::domain::{ImportName, Manifest};
use holdfast_shared::plan::clearance::{Restore, Source};
use serde_json::json;

use crate::bed::Bed;
use crate::engine::{backup, cleared, engine, exists, exported, put, restore};
use crate::schema;

/// Exports, restores with our engine and with `pg_restore`, and compares both with the source.
async fn equals_its_source(major: u16, compression: &str) {
    let bed = Bed::start(major).await;
    schema::create(&bed.cluster, "source", 2_000).await;
    bed.register_export("source", &[("COMPRESSION", compression)]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let manifest = bed.manifest(&receipt).await;
    let client = Installation::client_at_least(major).unwrap();
    assert_eq!(client.major, major, "a pg_dump of another major writes for its own");

    let restored = restore(&bed, backup(&manifest), "restored").await.unwrap();
    assert_eq!((restored.rows, restored.large_objects), (manifest.rows(), 3), "{restored:?}");
    assert_eq!((restored.proved_by, restored.left_out.as_slice()), ("fingerprints", [].as_slice()));
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "source"));

    let stock = Installation::client(17).unwrap();
    let file = bed.dump_file(&receipt).await;
    bed.restore(if compression.starts_with("zstd") { &stock } else { &client }, &file, "stock", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("stock").await);
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "stock"));

    // Without a manifest: one stream a table, proved by counts.
    let name: ImportName = "old/other.dump".parse().unwrap();
    let size_bytes = put(&bed, "imports/old/other.dump", std::fs::read(&file).unwrap()).await.1;
    let restored = restore(&bed, Source::Import { name, size_bytes, version_id: None }, "foreign").await.unwrap();
    assert_eq!((restored.rows, restored.proved_by), (manifest.rows(), "row counts"));
    assert_eq!(bed.contents("foreign").await, bed.contents("source").await);
}

macro_rules! majors {
    ($($name:ident: $major:literal, $compression:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() { equals_its_source($major, $compression).await; })*
    };
}

majors! {
    restores_into_15: 15, "gzip:1";
    restores_into_15_uncompressed: 15, "none";
    restores_into_16: 16, "gzip:1";
    restores_into_17: 17, "zstd:1";
    restores_into_18: 18, "gzip:1";
    restores_into_18_zstd: 18, "zstd:3";
}

/// One byte changed in each of the larger tables' data, one table at a time.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_by_table_and_leaves_nothing_behind() {
    let bed = Bed::start(17).await;
    schema::create(&bed.cluster, "source", 500).await;
    bed.register_export("source", &[]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let manifest = bed.manifest(&receipt).await;
    let artifact = &manifest.artifacts["dump"];
    let body = bed.get(&artifact.key).await;
    for table in manifest.tables.iter().filter(|table| table.rows > 100) {
        let piece = table.pieces[0];
        let mut damaged = body.clone();
        damaged[(piece.offset + piece.length / 2) as usize] ^= 0x10;
        let mut manifest = manifest.clone();
        let (version_id, _) = put(&bed, &artifact.key, damaged).await;
        manifest.artifacts.get_mut("dump").unwrap().version_id = version_id;
        let fault = restore(&bed, backup(&manifest), "restored").await.unwrap_err();
        assert!(fault.message.contains(&table.name), "{}: {fault}", table.name);
        assert!(matches!(fault.code, "backup-damaged" | "table-load-failed"), "{fault:?}");
        assert!(!exists(&bed, "restored").await, "{fault}");
    }
    // The version the manifest names is still whole.
    restore(&bed, backup(&manifest), "restored").await.unwrap();
}

/// One bit changed anywhere before the data: in definitions, values of sequences, offsets.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_contents_that_was_changed_is_not_restored() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    let sql =
        "CREATE TABLE things (id serial PRIMARY KEY, kind text DEFAULT 'first'); INSERT INTO things DEFAULT VALUES";
    bed.cluster.execute("source", sql).await.unwrap();
    let manifest = exported(&bed, "source").await;
    let key = &manifest.artifacts["dump"].key;
    let body = bed.get(key).await;
    let attempt = async |of: &Manifest, body: Vec<u8>| {
        let mut of = of.clone();
        of.artifacts.get_mut("dump").unwrap().version_id = put(&bed, key, body).await.0;
        Box::pin(restore(&bed, backup(&of), "restored")).await
    };
    let head = usize::try_from(manifest.tables[0].offset).unwrap();
    for at in (0..head).step_by(head / 50) {
        let mut changed = body.clone();
        changed[at] ^= 4;
        let fault = attempt(&manifest, changed).await.unwrap_err();
        assert_eq!(fault.code, "backup-damaged", "{at}: {fault}");
    }
    // Manifests of before have no checksum of the head, and one of the definitions.
    let mut older = manifest.clone();
    older.artifacts.get_mut("dump").unwrap().head_checksum = None;
    let mut changed = body.clone();
    let at = changed.windows(5).position(|window| window == b"first").unwrap();
    changed[at] = b'F';
    assert_eq!(attempt(&older, changed).await.unwrap_err().code, "backup-damaged");
    assert!(!exists(&bed, "restored").await);
    attempt(&older, body).await.unwrap();
}

/// Big tables: one in pieces by several streams, one by a stream of its own, with rows that need no second look.
#[tokio::test(flavor = "multi_thread")]
async fn a_big_table_is_loaded_in_pieces_and_a_smaller_one_frozen() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    let sql = "CREATE TABLE big AS SELECT g AS id, repeat(md5(g::text), 3) AS text FROM generate_series(1, 300000) g;
        ALTER TABLE big ADD PRIMARY KEY (id); CREATE INDEX big_text ON big (text);
        CREATE TABLE small AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 60000) g;
        ALTER TABLE small ADD PRIMARY KEY (id); CREATE INDEX small_text ON small (text);
        ALTER TABLE big ADD FOREIGN KEY (id) REFERENCES big; CREATE TABLE tiny (id int REFERENCES small)";
    bed.cluster.execute("source", sql).await.unwrap();
    bed.register_export("source", &[("COMPRESSION", "none")]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let manifest = bed.manifest(&receipt).await;
    assert!(manifest.tables.iter().any(|table| table.name == "big" && table.pieces.len() > 2));
    let restored = restore(&bed, backup(&manifest), "restored").await.unwrap();
    assert_eq!((restored.rows, restored.proved_by), (360_000, "fingerprints"));
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
    let client = Installation::client(17).unwrap();
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "source"));
    // Not all: COPY begins some pages twice.
    let frozen = "SELECT relpages > 100 AND relallvisible > 0.9 * relpages FROM pg_class WHERE relname = 'small'";
    let session = bed.cluster.connect("restored").await.unwrap();
    assert!(session.query_one(frozen, &[]).await.unwrap().get::<_, bool>(0));
}

/// Encodings whose letters are, byte for byte, others in UTF-8; and rules of ICU, which are text of any kind.
#[tokio::test(flavor = "multi_thread")]
async fn encodings_and_locales_come_back() {
    let bed = Bed::start(17).await;
    for options in [
        "ENCODING 'EUC_JP' LOCALE 'C'",
        "ENCODING 'LATIN1' LOCALE 'C'",
        r"ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de-u-co-phonebk' ICU_RULES E'&a < ''g'' < \\u0062\n'",
    ] {
        bed.cluster.execute("postgres", &format!("CREATE DATABASE source TEMPLATE template0 {options}")).await.unwrap();
        let name = if options.contains("EUC_JP") { "表" } else { "Tür" };
        let sql = format!(
            "CREATE TABLE \"{name}\" AS SELECT g, '{name};' || g AS \"{name}\" FROM generate_series(1, 500) g;
             COMMENT ON TABLE \"{name}\" IS '{name};'"
        );
        bed.cluster.execute("source", &sql).await.unwrap();
        let manifest = exported(&bed, "source").await;
        let restored =
            restore(&bed, backup(&manifest), "restored").await.unwrap_or_else(|fault| panic!("{options}: {fault}"));
        assert_eq!((restored.rows, restored.proved_by), (500, "fingerprints"), "{options}");
        assert_eq!(bed.contents("restored").await, bed.contents("source").await, "{options}");
        let same = "SELECT count(DISTINCT (encoding, datlocprovider, datcollate, datctype, datlocale, daticurules)) FROM pg_database
                     WHERE datname IN ('source', 'restored')";
        let client = bed.cluster.connect("postgres").await.unwrap();
        assert_eq!(client.query_one(same, &[]).await.unwrap().get::<_, i64>(0), 1, "{options}");
        for database in ["source", "restored"] {
            bed.cluster.execute("postgres", &format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
        }
    }
}

/// `pg_dump` has such rows loaded through the root, because values of an enum hash differently in every database.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_by_the_hash_of_an_enum_are_proved_as_one() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    let sql = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE TABLE hashed (k mood, v int) PARTITION BY HASH (k);
        CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO hashed SELECT (ARRAY['sad', 'ok', 'happy'])[1 + g % 3]::mood, g FROM generate_series(1, 1000) g;
        CREATE TABLE plain AS TABLE hashed";
    bed.cluster.execute("source", sql).await.unwrap();
    let manifest = exported(&bed, "source").await;
    assert_eq!(manifest.rows(), 2_000);
    let restored = restore(&bed, backup(&manifest), "restored").await.unwrap();
    assert_eq!((restored.rows, restored.proved_by), (2_000, "fingerprints"));
    let same = "SELECT (SELECT count(*) FROM (TABLE hashed EXCEPT TABLE plain) d), (SELECT count(*) FROM hashed)";
    let row = bed.cluster.connect("restored").await.unwrap().query_one(same, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (0, 1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_is_recorded_and_leaves_nothing_but_the_record() {
    let bed = Bed::start(17).await;
    schema::create(&bed.cluster, "source", 300).await;
    let manifest = exported(&bed, "source").await;
    assert_eq!(manifest.verified.as_ref().unwrap().by, "read-back");
    // What this release does not know of is somebody else's to read.
    let key = bed.manifests().pop().unwrap();
    let mut noted: serde_json::Value = serde_json::from_slice(&bed.get(&key).await).unwrap();
    noted["hold"] = json!({"by": "legal", "until": null});
    noted["expired_artifacts"] = json!(["sql"]);
    put(&bed, &key, noted.to_string().into_bytes()).await;
    let asked = Restore::Verify { scratch: "drill".to_owned() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    let receipt = engine(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!((receipt.rows, receipt.proved_by), (manifest.rows(), "fingerprints"));
    assert!(!exists(&bed, "drill").await);
    let recorded = Manifest::parse(&bed.get(&key).await).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&bed.get(&key).await).unwrap();
    noted["verified"] = body["verified"].clone();
    assert_eq!(body, noted);
    assert_eq!(recorded.verified.as_ref().unwrap().by, "restore-drill");
    assert_eq!(Manifest { verified: manifest.verified.clone(), ..recorded }, manifest);

    // Damaged, it is no verified backup any longer; found whole again, it is.
    let dump = manifest.artifacts["dump"].key.clone();
    let whole = bed.get(&dump).await;
    let mut damaged = whole.clone();
    let at = damaged.len() - 1000;
    damaged[at] ^= 1;
    for (content, fault) in [(damaged, Some("backup-damaged")), (whole, None)] {
        put(&bed, &dump, content).await;
        // The version that the manifest names is there whatever lies above it.
        let mut present = Manifest::parse(&bed.get(&key).await).unwrap();
        present.artifacts.get_mut("dump").unwrap().version_id = None;
        let asked = Restore::Verify { scratch: "drill".to_owned() };
        let clearance = cleared(&bed, asked, backup(&present), None).await;
        let failed = engine(&bed).await.carry_out(clearance).await.err().map(|fault| fault.code);
        assert_eq!(failed, fault);
        let found: serde_json::Value = serde_json::from_slice(&bed.get(&key).await).unwrap();
        assert_eq!(found["verified"]["by"], if fault.is_some() { json!(null) } else { json!("restore-drill") });
        assert_eq!(found["drill_failed"]["code"], fault.map_or(json!(null), |code| json!(code)));
        assert_eq!(found["expired_artifacts"], json!(["sql"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_changes_names_under_sessions_in_use_and_an_undo_changes_them_back() {
    let bed = Bed::start(17).await;
    schema::create(&bed.cluster, "source", 300).await;
    let settings = "ALTER DATABASE source SET search_path = app, public; ALTER DATABASE source SET work_mem = '7MB';
                    GRANT CREATE ON DATABASE source TO reporting; REVOKE TEMP ON DATABASE source FROM PUBLIC";
    bed.cluster.execute("postgres", settings).await.unwrap();
    let manifest = exported(&bed, "source").await;
    let before = bed.contents("source").await;
    bed.cluster.execute("source", "DELETE FROM app.orders").await.unwrap();
    let after = bed.contents("source").await;
    assert_ne!(before, after);

    // Applications that use the database all the time, and connect again when they are thrown out.
    let url = bed.cluster.url("source");
    let using = tokio::spawn(async move {
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                while client.query("SELECT count(*) FROM app.customers", &[]).await.is_ok() {}
            }
        }
    });
    let swap = Restore::Swap {
        database: "source".to_owned(),
        shadow: "source_shadow".to_owned(),
        previous: "source_before".to_owned(),
    };
    let clearance = cleared(&bed, swap, backup(&manifest), Some(&manifest)).await;
    let receipt = engine(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!((receipt.database.as_str(), receipt.previous.as_deref()), ("source", Some("source_before")));
    assert_eq!(receipt.left_out, Vec::<String>::new());
    assert!(bed.contents("source").await == before && bed.contents("source_before").await == after);
    assert!(!exists(&bed, "source_shadow").await);
    let client = bed.cluster.connect("postgres").await.unwrap();
    let belongings = "SELECT datname::text, array(SELECT unnest(datacl)::text ORDER BY 1), (SELECT setconfig FROM pg_db_role_setting s WHERE s.setdatabase = d.oid)
                        FROM pg_database d WHERE datname LIKE 'source%' ORDER BY 1";
    let rows = client.query(belongings, &[]).await.unwrap();
    for column in [1, 2] {
        assert_eq!(rows[0].get::<_, Vec<String>>(column), rows[1].get::<_, Vec<String>>(column));
    }

    let undo = Restore::Undo {
        database: "source".to_owned(),
        previous: Some("source_before".to_owned()),
        put_aside: None,
        aside: "source_undone".to_owned(),
    };
    let clearance = cleared(&bed, undo, Source::Previous, Some(&manifest)).await;
    engine(&bed).await.carry_out(clearance).await.unwrap();
    assert!(bed.contents("source").await == after && bed.contents("source_undone").await == before);
    assert!(!exists(&bed, "source_before").await);
    using.abort();
}
