//! Rows that a restore sends in COPY's binary format are what the server itself would have made of their text.

use holdfast_local::postgres::{Cluster, ClusterOptions};
use holdfast_shared::plan::clearance::Restore;

use crate::bed::Bed;
use crate::engine::{backup, cleared, cleared_with, engine, exported, new};

/// A value of each type, its edges, and what cannot be converted; `g` is the row's number. Each table is large enough to
/// be loaded in binary.
const TABLES: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'o''k', 'a\b');
CREATE DOMAIN small AS int CHECK (VALUE < 100000000);
CREATE DOMAIN smaller AS small;
CREATE TABLE plain (
    b bool, i2 smallint, i4 int, i8 bigint, o oid, f4 real, f8 double precision, n numeric, n2 numeric(12, 3), n3 numeric(30, 0),
    body text, v varchar(40), c char(9), j json, jb jsonb, y bytea, u uuid, d date, ti time, t3 time(3), ts timestamp, tz timestamptz,
    tz0 timestamptz(0), m mood, dom small, "odd ""name"", (é" int);
INSERT INTO plain SELECT g % 2 = 0, g % 32768 * (1 - g % 2 * 2), g * 71 * (1 - g % 2 * 2), g::bigint * 12345678901 * (1 - g % 2 * 2), g,
    (random() * 10 ^ (g % 60 - 30))::real * (1 - g % 2 * 2), random() * 10.0 ^ (g % 300 - 150),
    (random() * 10 ^ (g % 20))::numeric * (1 - g % 2 * 2), g / 7.0, g::numeric * 100000000000, E'tab\there \\ line\nfeed \r \b\f\v é' || g,
    'v' || g, 'c' || g % 1000, json_build_object('a', g, 'b', E'\n\\'), jsonb_build_object('a', g, 'b', repeat('x', g % 100)),
    decode(md5(g::text), 'hex'), md5(g::text)::uuid, date '0001-01-01' + g * 100, time '00:00' + g * interval '0.777777 s',
    time '00:00' + g * interval '0.777777 s', timestamp '0100-02-28' + g * interval '30 days 1.000001 s',
    timestamptz '1850-01-01' + g * interval '13 days 0.1 s', timestamptz '1970-01-01' + g * interval '1 day', (enum_range(NULL::mood))[1 + g % 3], g, g
  FROM generate_series(1, 6000) g;
INSERT INTO plain (i2) VALUES (NULL);
INSERT INTO plain SELECT true, -32768, -2147483648, 1, 4294967295, 'NaN', '-0', 'NaN', -0.001, 1e29, '', '', '', '0', '0', '', u, d, '24:00', '00:00', ts, tz,
    tz0, 'sad', -1, 0 FROM plain WHERE i4 = 142;
INSERT INTO plain (n, f4, f8) VALUES (0, 'Infinity', '-Infinity'), (0.000, 1e-45, 5e-324), (10000, 3.4028235e38, 1.7976931348623157e308),
    (-9999.99990000, 0, 0), (1e-50, 0, 0), (1e300, 0, 0), (-12345678901234567890.123456789012345678900000, 0, 0);

CREATE TABLE surprises (id int, i8 bigint, n numeric, d date, ts timestamp, tz timestamptz, filler text);
INSERT INTO surprises SELECT g, g, g, date '2000-01-01' + g % 30000, now(), now(), repeat('x', 200) FROM generate_series(1, 3000) g;
INSERT INTO surprises VALUES (3001, -9223372036854775808, 1, 'infinity', '-infinity', 'infinity', 'f'), (3002, 9223372036854775807, 1, '0044-03-15 BC', '4713-01-01 00:00:00 BC', '0001-01-01 BC', 'f');
INSERT INTO surprises SELECT g, g, repeat('9', 1200)::numeric, '-infinity', '294276-12-31 23:59:59', 'infinity', repeat('y', 200) FROM generate_series(3003, 6000) g;

CREATE TABLE giants (id int, body text);
INSERT INTO giants SELECT g, repeat(md5(g::text), CASE g WHEN 50 THEN 40000 ELSE 500 END) FROM generate_series(1, 100) g;
CREATE TABLE others (id int, nested smaller, span interval, a int[], filler text);
INSERT INTO others SELECT g, g, g * interval '1 s', ARRAY[g, NULL], repeat('z', 300) FROM generate_series(1, 5000) g;
"#;

/// Columns of `plain` whose types have the same oid in every database.
const BUILT_IN: &str = "b, i2, i4, i8, o, f4, f8, n, n2, n3, body, v, c, j, jb, y, u, d, ti, t3, ts, tz, tz0";

async fn equal(bed: &Bed, made: &str) {
    let client = holdfast_local::postgres::Installation::client_at_least(bed.cluster.major()).unwrap();
    assert_eq!(bed.contents(made).await, bed.contents("live").await);
    assert_eq!(bed.schema(&client, made), bed.schema(&client, "live"));
    // Byte by byte, and not only by what is shown of it.
    for (table, columns) in [("plain", BUILT_IN), ("surprises", "id, i8, n, d, ts, tz, filler")] {
        let sent = format!(
            "SELECT md5(string_agg(h, '' ORDER BY h)) FROM (SELECT md5(record_send(ROW({columns}))) h FROM {table}) t"
        );
        let mut found = Vec::new();
        for name in [made, "live"] {
            let client = bed.cluster.connect(name).await.unwrap();
            found.push(client.query_one(&sent, &[]).await.unwrap().get::<_, String>(0));
        }
        assert_eq!(found[0], found[1], "{table}");
    }
}

async fn rows_come_back_as_they_were(major: u16) {
    let options = ClusterOptions::major(major).setting("log_statement", "all");
    let bed = Bed::with_cluster(Cluster::start(options).await.unwrap()).await;
    bed.cluster.create_database("live").await.unwrap();
    // What the text of times and numbers depends on differs between the servers' settings and ours.
    let settings =
        "ALTER DATABASE live SET datestyle = 'German'; ALTER DATABASE live SET timezone = 'Europe/Amsterdam';
                    ALTER DATABASE live SET bytea_output = 'escape'; ALTER DATABASE live SET extra_float_digits = 0";
    bed.cluster.execute("live", settings).await.unwrap();
    bed.cluster.execute("live", TABLES).await.unwrap();
    if major >= 14 {
        bed.cluster.execute("live", "INSERT INTO surprises (n) VALUES ('Infinity'), ('-Infinity')").await.unwrap();
    }
    let manifest = exported(&bed, "live").await;
    bed.cluster.execute("live", "ALTER DATABASE live RESET ALL").await.unwrap();
    engine(&bed).await.carry_out(cleared(&bed, new("made"), backup(&manifest), None).await).await.unwrap();
    equal(&bed, "made").await;
    let began = |how: &str| {
        let log = bed.cluster.log();
        ["plain", "surprises", "giants", "others"].map(|table| {
            let copy = |line: &&str| line.contains(&format!("COPY public.{table} (")) && line.contains(how);
            log.lines().filter(|line| line.contains("FROM STDIN")).filter(copy).count()
        })
    };
    assert_eq!(began("FORMAT binary"), [1, 1, 1, 0]);
    // What could not be converted, and what came after it.
    assert_eq!(began("FROM STDIN"), [1, 2, 2, 1]);
    let asked = |options: &mut holdfast_shared::plan::clearance::Options| options.copy_as_text = true;
    let clearance = cleared_with(&bed, new("in_text"), backup(&manifest), None, asked).await;
    engine(&bed).await.carry_out(clearance).await.unwrap();
    equal(&bed, "in_text").await;
    assert_eq!(began("FORMAT binary"), [1, 1, 1, 0]);

    // Into a live table whose columns are others by now: what its server makes of the text.
    bed.cluster.execute("live", "ALTER TABLE giants ALTER id TYPE numeric(9, 2); DELETE FROM giants").await.unwrap();
    let asked = Restore::TablesInPlace { database: "live".into(), tables: vec!["giants".parse().unwrap()] };
    let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
    assert_eq!(engine(&bed).await.carry_out(clearance).await.unwrap_err().code, "restore-not-equal");
    assert_eq!(bed.contents("live").await["public.giants"], "0 rows 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_as_they_were_13() {
    Box::pin(rows_come_back_as_they_were(13)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_as_they_were_18() {
    Box::pin(rows_come_back_as_they_were(18)).await;
}
