//! Sizes and shapes at the edge: giant rows, many parts, many tables, nothing at all, other encodings.

use std::process::{Command, Stdio};

use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use serde_json::json;

use crate::bed::{BUCKET, Bed, run};
use crate::pieces;

const SMALL_PARTS: (&str, &str) = ("PART_SIZE_BYTES", "5242880");

/// Text that no codec makes much of: blocks of MD5 sums that are longer than any window.
const NOISE: &str = "CREATE FUNCTION noise(seed int, kib int) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(md5(seed || '/' || g), '') FROM generate_series(1, kib * 32) g $$;";

async fn parts_stored(bed: &Bed) -> usize {
    bed.store().requests().iter().filter(|request| request.operation == "UploadPart").count()
}

/// `cat file | pg_restore`: no seeking.
async fn restore_from_pipe(bed: &Bed, client: &Installation, file: &std::path::Path, database: &str) {
    bed.cluster.create_database(database).await.unwrap();
    let mut cat = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().unwrap();
    let url = bed.cluster.url(database);
    run(client.command("pg_restore").args(["--exit-on-error", "--dbname", &url]).stdin(cat.stdout.take().unwrap()));
    assert!(cat.wait().unwrap().success());
}

/// Tables that are split over workers and parts, tables that are bundled, and seams between all of them.
#[tokio::test(flavor = "multi_thread")]
async fn parts_pieces_and_seams_for_each_codec() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster.execute("source", NOISE).await.unwrap();
    bed.cluster
        .execute(
            "source",
            "CREATE TABLE aa_small (x int); INSERT INTO aa_small VALUES (1), (2);
             CREATE TABLE big (id int, t text);
             INSERT INTO big SELECT g, md5(g::text) || md5('b' || g) || md5('c' || g) || md5('d' || g) || md5('e' || g) || md5('f' || g) || md5('g' || g) || md5('h' || g)
               FROM generate_series(1, 220000) g;
             CREATE TABLE gap (x int);
             DO $$ BEGIN FOR i IN 1..5 LOOP
                EXECUTE format('CREATE TABLE mid_%s (id int, t text)', i);
                EXECUTE format('INSERT INTO mid_%s SELECT g, md5(g::text || %s) || md5(''x'' || g) || md5(''y'' || g) || md5(''z'' || g) FROM generate_series(1, 8000 * %s) g', i, i, i);
                EXECUTE format('CREATE TABLE mid_%s_small AS SELECT g FROM generate_series(1, 100 * %s) g', i, i);
             END LOOP; END $$;
             CREATE TABLE toasted (id int, t text); ALTER TABLE toasted ALTER t SET STORAGE EXTERNAL;
             INSERT INTO toasted SELECT g, noise(g, 256) FROM generate_series(1, 60) g;
             CREATE TABLE zz_empty (x int);",
        )
        .await
        .unwrap();
    let expected = bed.contents("source").await;
    let client = Installation::client(17).unwrap();
    for (codec, options) in [("zstd:1", &["-j", "4"][..]), ("gzip:1", &[]), ("none", &[])] {
        bed.register_export("source", &[("COMPRESSION", codec), SMALL_PARTS]);
        bed.store().clear_requests();
        let receipt = bed.export(json!({})).await;
        assert!(parts_stored(&bed).await >= 8, "{codec}: {} parts", parts_stored(&bed).await);
        let (file, manifest) = (bed.dump_file(&receipt).await, bed.manifest(&receipt).await);
        pieces::check(&std::fs::read(&file).unwrap(), &manifest);
        let big = manifest.tables.iter().find(|table| table.name == "big").unwrap();
        assert!(big.pieces.len() >= 4, "{codec}: {} pieces", big.pieces.len());

        let database = format!("restored_{}", codec.split(':').next().unwrap());
        if codec == "gzip:1" {
            restore_from_pipe(&bed, &client, &file, &database).await;
        } else {
            bed.restore(&client, &file, &database, options).await;
        }
        assert_eq!(bed.contents(&database).await, expected, "{codec}");

        let listed = run(client.command("pg_restore").arg("-l").arg(&file));
        assert_eq!(listed.matches("TABLE DATA").count(), 15, "{listed}");
        let one = run(client.command("pg_restore").args(["-t", "mid_4_small", "-f", "-"]).arg(&file));
        assert!(one.contains("COPY public.mid_4_small (g) FROM stdin;\n1\n") && one.contains("\n400\n\\.\n"), "{one}");
        let script = Command::new("sh")
            .arg("-c")
            .arg(format!("'{}' -f - '{}' | grep -c .", client.tool("pg_restore").display(), file.display()))
            .output()
            .unwrap();
        let lines: usize = String::from_utf8_lossy(&script.stdout).trim().parse().unwrap();
        assert!(lines > 220_000 + 120_000, "{codec}: {lines} lines");
    }
}

/// Rows far longer than a part, several in one split table, so that workers meet in the middle of each other's rows.
async fn giant_rows(codec: &str, megabytes: usize) {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster.execute("source", NOISE).await.unwrap();
    let repeats = megabytes / 4;
    bed.cluster
        .execute(
            "source",
            &format!(
                "CREATE TABLE big (id int, t text); ALTER TABLE big ALTER t SET STORAGE EXTERNAL;
                 INSERT INTO big SELECT g, md5(g::text) || md5('x' || g) FROM generate_series(1, 100000) g;
                 INSERT INTO big SELECT -1, repeat(noise(1, 4096), {repeats});
                 INSERT INTO big SELECT g, md5(g::text) || md5('y' || g) FROM generate_series(100001, 200000) g;
                 INSERT INTO big SELECT -2, repeat(noise(2, 4096), 6);
                 INSERT INTO big SELECT g, md5(g::text) || md5('z' || g) FROM generate_series(200001, 300000) g;
                 INSERT INTO big SELECT -3, repeat(noise(3, 4096), 7);
                 CREATE TABLE small (x int); INSERT INTO small VALUES (7);"
            ),
        )
        .await
        .unwrap();
    bed.register_export("source", &[("COMPRESSION", codec), SMALL_PARTS, ("WORKERS", "4")]);
    let outcome = bed.invoke(json!({})).await;
    assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
    let (file, manifest) = (bed.dump_file(&outcome.payload).await, bed.manifest(&outcome.payload).await);
    pieces::check(&std::fs::read(&file).unwrap(), &manifest);
    bed.restore(&Installation::client(17).unwrap(), &file, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
    assert!(outcome.max_rss_kb < 256 * 1024, "{} KB for rows of {megabytes} MB", outcome.max_rss_kb);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_250_mb_by_zstd() {
    giant_rows("zstd:1", 248).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_48_mb_by_gzip() {
    giant_rows("gzip:1", 48).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_60_mb_uncompressed() {
    giant_rows("none", 60).await;
}

/// The server cannot put such a value into text: refused by name, never cut short.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_whose_text_exceeds_a_gigabyte() {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    let sql = "CREATE TABLE huge (id int, b bytea); ALTER TABLE huge ALTER b SET STORAGE EXTERNAL; INSERT INTO huge VALUES (1, 'x');
               INSERT INTO huge SELECT 2, convert_to(repeat('0123456789', 55000000), 'UTF8'); INSERT INTO huge VALUES (3, 'y')";
    bed.cluster.execute("source", sql).await.unwrap();
    bed.register_export("source", &[]);
    let (code, message) = bed.export_fails(json!({})).await;
    assert_eq!(code, "row-too-large", "{message}");
    assert!(message.contains("public.huge"), "{message}");
    assert!(bed.manifests().is_empty() && bed.store().pending_uploads(BUCKET).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_and_next_to_nothing() {
    let bed = Bed::start(17).await;
    let client = Installation::client(17).unwrap();
    bed.cluster.create_database("empty").await.unwrap();
    bed.register_export("empty", &[("COMPRESSION", "gzip")]);
    let receipt = bed.export(json!({})).await;
    assert_eq!((&receipt["tables"], &receipt["rows"]), (&json!(0), &json!(0)));
    bed.restore(&client, &bed.dump_file(&receipt).await, "empty_restored", &[]).await;
    assert_eq!(bed.schema(&client, "empty_restored"), bed.schema(&client, "empty"));

    bed.cluster.create_database("sparse").await.unwrap();
    bed.cluster
        .execute(
            "sparse",
            "CREATE TABLE no_rows (x int); CREATE TABLE no_columns (); CREATE TABLE no_columns_no_rows ();
             INSERT INTO no_columns SELECT FROM generate_series(1, 17);
             CREATE TABLE generated_only (a int GENERATED ALWAYS AS (41 + 1) STORED, b text GENERATED ALWAYS AS ('x') STORED);
             INSERT INTO generated_only SELECT FROM generate_series(1, 23);
             CREATE TABLE dropped_all (a int, b int); INSERT INTO dropped_all SELECT 1, 2 FROM generate_series(1, 5);
             ALTER TABLE dropped_all DROP a, DROP b;
             CREATE TABLE emptied AS SELECT g FROM generate_series(1, 5000) g; DELETE FROM emptied;
             CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no DDL'; END $$;
             CREATE TABLE one_row (t text); INSERT INTO one_row VALUES ('');
             CREATE EVENT TRIGGER watch ON ddl_command_start EXECUTE FUNCTION watch();",
        )
        .await
        .unwrap();
    for codec in ["zstd", "gzip", "none"] {
        bed.register_export("sparse", &[("COMPRESSION", codec)]);
        let receipt = bed.export(json!({})).await;
        let (file, manifest) = (bed.dump_file(&receipt).await, bed.manifest(&receipt).await);
        pieces::check(&std::fs::read(&file).unwrap(), &manifest);
        assert_eq!(manifest.rows(), 17 + 23 + 5 + 1);
        let database = format!("sparse_{codec}");
        bed.restore(&client, &file, &database, if codec == "none" { &["-j", "2"] } else { &[] }).await;
        assert_eq!(bed.contents(&database).await, bed.contents("sparse").await, "{codec}");
        assert_eq!(bed.schema(&client, &database), bed.schema(&client, "sparse"), "{codec}");
    }
}

/// The number of requests follows the bytes, not the tables. Run with HOLDFAST_TABLES=5000 for the full size.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_tables() {
    let count: usize = std::env::var("HOLDFAST_TABLES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_500);
    let cluster = ClusterOptions::major(15).setting("max_locks_per_transaction", "1024");
    let bed = Bed::with_cluster(Cluster::start(cluster).await.unwrap()).await;
    bed.cluster.create_database("source").await.unwrap();
    for from in (1..=count).step_by(500) {
        let sql = format!(
            "DO $$ BEGIN FOR i IN {from}..{} LOOP EXECUTE format('CREATE TABLE t%s (a int, b text)', i);
                EXECUTE format('INSERT INTO t%s VALUES (%s, ''x''), (2, NULL)', i, i); END LOOP; END $$",
            (from + 499).min(count)
        );
        bed.cluster.execute("source", &sql).await.unwrap();
    }
    bed.register_export("source", &[]);
    bed.store().clear_requests();
    let began = std::time::Instant::now();
    let receipt = bed.export(json!({})).await;
    let requests = bed.store().requests().len();
    eprintln!(
        "{count} tables: {:.1} s, {requests} requests, {}",
        began.elapsed().as_secs_f64(),
        receipt["durations_seconds"]
    );
    assert!(requests < 60, "{requests} requests");
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert_eq!((&receipt["tables"], &receipt["rows"]), (&json!(count), &json!(2 * count)));
    let file = bed.dump_file(&receipt).await;
    let manifest = bed.manifest(&receipt).await;
    pieces::check(&std::fs::read(&file).unwrap(), &manifest);
    let client = Installation::client(15).unwrap();
    let script = run(client.command("pg_restore").args(["-f", "-"]).arg(&file));
    assert_eq!(script.matches("\tx\n2\t\\N\n\\.\n").count(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            "CREATE ROLE reader; SELECT lo_from_bytea(0, decode(repeat(md5(g::text), g % 40), 'hex')) FROM generate_series(1, 300) g;
             SELECT lo_from_bytea(4294967290, decode(repeat(md5('max'), 3), 'hex'));
             DO $$ DECLARE o oid := lo_create(0); BEGIN
                FOR i IN 0..119 LOOP PERFORM lo_put(o, i * 262144::bigint, convert_to((SELECT string_agg(md5(i || '/' || g), '') FROM generate_series(1, 8192) g), 'UTF8')); END LOOP; END $$;
             SELECT lo_put(lo_create(0), 3000000, 'after a hole');
             DO $$ DECLARE o oid; BEGIN SELECT min(oid) INTO o FROM pg_largeobject_metadata; EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO reader', o); END $$;
             CREATE TABLE refs AS SELECT oid AS lo FROM pg_largeobject_metadata;",
        )
        .await
        .unwrap();
    let expected = bed.contents("source").await;
    let client = Installation::client(17).unwrap();
    for (codec, options) in [("zstd", &["-j", "2"][..]), ("gzip", &[]), ("none", &[])] {
        bed.register_export("source", &[("COMPRESSION", codec), SMALL_PARTS]);
        let receipt = bed.export(json!({})).await;
        let file = bed.dump_file(&receipt).await;
        let manifest = bed.manifest(&receipt).await;
        let objects = manifest.large_objects.unwrap();
        assert_eq!(objects.count, 303);
        assert!(objects.bytes > 31_457_280 + 3_000_000, "{}", objects.bytes);
        bed.restore(&client, &file, &format!("restored_{codec}"), options).await;
        assert!(bed.contents(&format!("restored_{codec}")).await == expected, "{codec}");
    }
}

/// Text is passed on in the database's own encoding, whatever that is.
#[tokio::test(flavor = "multi_thread")]
async fn other_encodings() {
    let bed = Bed::start(15).await;
    let client = Installation::client(15).unwrap();
    for (encoding, seed) in [
        ("LATIN1", "E'caf\\u00e9'"),
        ("SQL_ASCII", "convert_from('\\x636166e9', 'SQL_ASCII')"),
        ("EUC_JP", "E'\\u65e5\\u672c'"),
    ] {
        let database = encoding.to_lowercase();
        let create = |name: &str| format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        bed.cluster.execute("postgres", &create(&database)).await.unwrap();
        // In SQL_ASCII the server makes nothing of bytes beyond ASCII: the names are as the data, not UTF-8.
        let sql = format!(
            "CREATE TABLE plain (id int, t text);
             DO $$ DECLARE word text := {seed}; BEGIN
                INSERT INTO plain SELECT g, word || g FROM generate_series(1, 1000) g;
                EXECUTE format('CREATE SCHEMA %I', 's' || word); EXECUTE format('CREATE TABLE %I.%I (%I int, b text)', 's' || word, 't ' || word, 'c,' || word);
                EXECUTE format('INSERT INTO %I.%I VALUES (1, %L)', 's' || word, 't ' || word, word);
             END $$;"
        );
        bed.cluster.execute(&database, &sql).await.unwrap();
        bed.register_export(&database, &[]);
        let receipt = bed.export(json!({})).await;
        let (file, manifest) = (bed.dump_file(&receipt).await, bed.manifest(&receipt).await);
        assert_eq!((manifest.server.encoding.as_str(), manifest.tables.len(), manifest.rows()), (encoding, 2, 1001));
        if encoding != "SQL_ASCII" {
            assert!(
                manifest.tables.iter().any(|t| t.name.starts_with("t ")
                    && t.columns[0].starts_with("c,")
                    && !t.name.contains('\u{fffd}')),
                "{:?}",
                manifest.tables
            );
        }
        let restored = format!("{database}_restored");
        bed.cluster.execute("postgres", &create(&restored)).await.unwrap();
        let url = bed.cluster.url(&restored);
        run(client.command("pg_restore").args(["--exit-on-error", "--dbname", &url]).arg(&file));
        let bytes = |name: &str| {
            let output = client
                .command("pg_dump")
                .args(["--data-only", "--inserts", "--dbname", &bed.cluster.url(name)])
                .output()
                .unwrap();
            assert!(output.status.success());
            let lines: Vec<Vec<u8>> = output
                .stdout
                .split(|&b| b == b'\n')
                .filter(|line| line.starts_with(b"INSERT"))
                .map(<[u8]>::to_vec)
                .collect();
            lines
        };
        let lines = bytes(&database);
        assert_eq!(lines.len(), 1001);
        assert!(bytes(&restored) == lines, "{encoding}");
    }
}

/// The fingerprint is of the rows, not of where they lie.
#[tokio::test(flavor = "multi_thread")]
async fn fingerprints() {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            "CREATE TABLE t (id int PRIMARY KEY, v text, w numeric); INSERT INTO t SELECT g, md5(g::text), g / 7.0 FROM generate_series(1, 60000) g;
             CREATE TABLE same (x int); INSERT INTO same VALUES (1), (1)",
        )
        .await
        .unwrap();
    bed.register_export("source", &[]);
    let taken = async |bed: &Bed| {
        let receipt = bed.export(json!({})).await;
        let manifest = bed.manifest(&receipt).await;
        let print = |name: &str| manifest.tables.iter().find(|table| table.name == name).unwrap().fingerprint;
        (print("t"), print("same"), manifest.schema_fingerprint.clone())
    };
    let first = taken(&bed).await;
    for reorder in [
        "CREATE INDEX by_v ON t (v); CLUSTER t USING by_v; DROP INDEX by_v",
        "CREATE TABLE copy AS SELECT * FROM t ORDER BY w DESC; TRUNCATE t; INSERT INTO t SELECT * FROM copy; DROP TABLE copy",
        "UPDATE t SET v = v WHERE id % 3 = 0; ALTER ROLE postgres SET timezone = 'Asia/Kolkata'; ALTER ROLE postgres SET extra_float_digits = 0",
    ] {
        bed.cluster.execute("source", reorder).await.unwrap();
        assert_eq!(taken(&bed).await, first, "{reorder}");
    }
    for (change, schema_too) in [
        ("UPDATE t SET w = w + 0.0001 WHERE id = 59999", false),
        ("DELETE FROM t WHERE id = 7", false),
        ("INSERT INTO t SELECT id + 60000, v, w FROM t WHERE id = 8", false),
        ("ALTER TABLE t ADD COLUMN late int", true),
    ] {
        let before = taken(&bed).await;
        bed.cluster.execute("source", change).await.unwrap();
        let after = taken(&bed).await;
        assert_ne!(after.0, before.0, "{change}");
        assert_eq!(after.1, before.1, "{change}");
        assert_eq!(after.2 != before.2, schema_too, "{change}");
    }
}
