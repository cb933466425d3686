//! Sizes and shapes at the edge: giant rows, many parts, many tables, nothing at all, other encodings.

use std::process::{Command, Stdio};

use holdfast_local::postgres::Installation;
use serde_json::json;

use crate::bed::{Bed, run};
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
             INSERT INTO big SELECT g, md5(g::text) || md5('b' || g) || md5('c' || g) || md5('d' || g) FROM generate_series(1, 600000) g;
             CREATE TABLE gap (x int);
             DO $$ BEGIN FOR i IN 1..5 LOOP
                EXECUTE format('CREATE TABLE mid_%s (id int, t text)', i);
                EXECUTE format('INSERT INTO mid_%s SELECT g, md5(g::text || %s) || md5(''x'' || g) FROM generate_series(1, 20000 * %s) g', i, i, i);
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
        let count = pieces::check(&std::fs::read(&file).unwrap(), &manifest);
        assert!(count > manifest.tables.len() + 5, "{codec}: {count} pieces");

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
        assert!(lines > 600_000 + 300_000, "{codec}: {lines} lines");
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
                 INSERT INTO big SELECT -2, repeat(noise(2, 4096), 8);
                 INSERT INTO big SELECT g, md5(g::text) || md5('z' || g) FROM generate_series(200001, 400000) g;
                 INSERT INTO big SELECT -3, repeat(noise(3, 4096), 12);
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
async fn a_field_of_60_mb_by_gzip() {
    giant_rows("gzip:1", 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_60_mb_uncompressed() {
    giant_rows("none", 60).await;
}
