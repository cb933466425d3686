//! Chosen tables, engine only: into a schema of their own, and in the place of their rows.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_shared::domain::{Manifest, TablePattern};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::{Restore, Source};
use restore_trigger::engine::Receipt;
use serde_json::json;
use tokio_postgres::Client;

use crate::bed::Bed;
use crate::engine::{backup, cleared, engine, exported, put};
use crate::schema;

const SCHEMA: &str = "restore_20250621-143000";

fn patterns(tables: &[&str]) -> Vec<TablePattern> {
    tables.iter().map(|pattern| pattern.parse().unwrap()).collect()
}

async fn into_schema(bed: &Bed, source: Source, tables: &[&str]) -> Result<Receipt, Fault> {
    let asked = Restore::TablesIntoSchema { database: "live".into(), schema: SCHEMA.into(), tables: patterns(tables) };
    let clearance = cleared(bed, asked, source, None).await;
    engine(bed).await.carry_out(clearance).await
}

async fn in_place(bed: &Bed, manifest: &Manifest, tables: &[&str]) -> Result<Receipt, Fault> {
    let asked = Restore::TablesInPlace { database: "live".into(), tables: patterns(tables) };
    let clearance = cleared(bed, asked, backup(manifest), Some(manifest)).await;
    engine(bed).await.carry_out(clearance).await
}

/// A live database, and its backup.
async fn live(major: u16, more: &str) -> (Bed, Manifest) {
    let bed = Bed::start(major).await;
    schema::create(&bed.cluster, "live", 400).await;
    bed.cluster.execute("live", more).await.unwrap();
    let manifest = exported(&bed, "live").await;
    (bed, manifest)
}

async fn schemas(bed: &Bed) -> Vec<String> {
    let client = bed.cluster.connect("live").await.unwrap();
    let rows = client.query("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'restore%'", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Columns, constraints and indexes of a table, without the name of its schema.
async fn shape(client: &Client, schema: &str, table: &str) -> Vec<String> {
    let sql = "SELECT pg_catalog.format('%s %s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                                        (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum))
                 FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
               UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::text::regclass
               UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::text::regclass
               UNION ALL SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = $1::text::regclass
               UNION ALL SELECT obj_description($1::text::regclass, 'pg_class')";
    client.batch_execute("SET search_path = ''").await.unwrap();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let name = format!("{}.{}", quoted(schema), quoted(table));
    let mut shape: Vec<String> = client
        .query(sql, &[&name])
        .await
        .unwrap()
        .iter()
        .filter_map(|row| row.get::<_, Option<String>>(0))
        .map(|line| {
            [quoted(schema), schema.to_owned(), "app".to_owned()]
                .iter()
                .fold(line, |line, name| line.replace(&format!("{name}."), ""))
        })
        .collect();
    shape.sort();
    shape
}

const HOSTILE: &str = r#"
CREATE SCHEMA "we""ird.schema";
CREATE TABLE "we""ird.schema"."CREATE TABLE app.orders (" (id serial PRIMARY KEY, "a""b" text DEFAULT 'app.orders; DROP TABLE app.orders' CHECK ("a""b" <> 'app.orders'));
INSERT INTO "we""ird.schema"."CREATE TABLE app.orders (" ("a""b") SELECT 'row ' || g FROM generate_series(1, 50) g;
CREATE SEQUENCE app.shared;
CREATE TABLE app.counted (a int DEFAULT nextval('app.shared') NOT NULL, b serial, c int DEFAULT 7);
INSERT INTO app.counted (c) SELECT g FROM generate_series(1, 20) g;
ALTER TABLE app.events ADD CONSTRAINT events_key PRIMARY KEY (at, kind, data_key);
"#;

async fn tables_come_into_a_schema(major: u16) {
    // A key over partitions, whose indexes are attached one by one.
    let more = HOSTILE.replace(
        "ALTER TABLE app.events ADD",
        "ALTER TABLE app.events ADD COLUMN data_key int NOT NULL DEFAULT 1; ALTER TABLE app.events ADD",
    );
    let (bed, manifest) = live(major, &more).await;
    let before = bed.contents("live").await;
    // The first dot separates schema and table: a schema with a dot in it is chosen by its beginning.
    let chosen = ["app.orders", "customers", "app.events", "we\"ird*.*", "app.counted", "app.child", "app.no_columns"];
    let receipt = into_schema(&bed, backup(&manifest), &chosen).await.unwrap();
    assert_eq!((receipt.schema.as_deref(), receipt.proved_by), (Some(SCHEMA), "fingerprints"));

    let after = bed.contents("live").await;
    let client = bed.cluster.connect("live").await.unwrap();
    let tables = [
        ("app", "orders"),
        ("app", "customers"),
        ("app", "events_2024"),
        ("app", "events_2025"),
        ("app", "events_rest"),
        ("app", "counted"),
        ("app", "child"),
        ("app", "no_columns"),
        ("we\"ird.schema", "CREATE TABLE app.orders ("),
    ];
    let named = |schema: &str, table: &str| {
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let quoted = |name: &str| {
            if plain(name) { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
        };
        format!("{}.{}", quoted(schema), quoted(table))
    };
    for (schema, table) in tables {
        assert_eq!(after[&named(SCHEMA, table)], before[&named(schema, table)], "{table}");
        let (mut original, mut copy) = (shape(&client, schema, table).await, shape(&client, SCHEMA, table).await);
        if table == "counted" {
            // Its counter is not its own.
            original.retain(|line| !line.starts_with("a integer"));
            copy.retain(|line| !line.starts_with("a integer"));
        }
        assert_eq!(copy, original, "{table}");
    }
    // What was there is untouched, sequences too; those of the copies count on by themselves.
    let live_after: BTreeMap<_, _> = after.iter().filter(|(name, _)| !name.contains(SCHEMA)).collect();
    assert_eq!(live_after, before.iter().collect());
    assert_eq!(after[&named(SCHEMA, "orders_id_seq")], before["app.orders_id_seq"]);
    let sql = format!("INSERT INTO {} DEFAULT VALUES RETURNING b", named(SCHEMA, "counted"));
    let error = client.query_one(&sql, &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23502", "its default was left out: {error}");
    let left_out = receipt.left_out.join("; ");
    for told in ["the default of app.counted.a", "TRIGGER app.orders touch", "the rows of app.parent"] {
        assert!(left_out.contains(told), "{told} in {left_out}");
    }
    // A key between two chosen tables holds in the copy as well.
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confrelid = $1::text::regclass AND connamespace = $2::text::regnamespace";
    let quoted_schema = format!("\"{SCHEMA}\"");
    let row = client.query_one(keys, &[&named(SCHEMA, "customers"), &quoted_schema]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);

    // It stays until somebody drops it.
    let fault = into_schema(&bed, backup(&manifest), &["app.orders"]).await.unwrap_err();
    assert_eq!(fault.code, "restore-schema-exists");
    client.batch_execute(&format!("DROP SCHEMA {quoted_schema} CASCADE")).await.unwrap();

    // An archive of unknown origin has no fingerprints.
    let artifact = &manifest.artifacts["dump"];
    let name = "old.dump".parse().unwrap();
    let (version_id, size_bytes) = put(&bed, "imports/old.dump", bed.get(&artifact.key).await).await;
    let receipt = into_schema(&bed, Source::Import { name, size_bytes, version_id }, &["orders"]).await.unwrap();
    assert_eq!((receipt.tables, receipt.proved_by), (1, "row counts"));
    assert_eq!(bed.contents("live").await[&named(SCHEMA, "orders")], before["app.orders"]);
    assert!(receipt.left_out.iter().any(|told| told.contains("FK CONSTRAINT app.orders")), "{:?}", receipt.left_out);
}

macro_rules! majors {
    ($($name:ident: $major:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() { tables_come_into_a_schema($major).await; })*
    };
}

majors! {
    tables_come_into_a_schema_of_13: 13;
    tables_come_into_a_schema_of_15: 15;
    tables_come_into_a_schema_of_18: 18;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_cannot_be_whole_is_not_there() {
    let more = "CREATE SCHEMA other; CREATE TABLE other.orders (a int); INSERT INTO other.orders VALUES (1);
                CREATE TYPE app.gone AS ENUM ('x'); CREATE TABLE app.typed (a app.gone); INSERT INTO app.typed VALUES ('x')";
    let (bed, manifest) = live(17, more).await;
    let before = bed.contents("live").await;
    for (tables, code, word) in [
        (["app.orders", "app.nothing*"].as_slice(), "restore-tables-not-found", "app.nothing*"),
        (&["app.totals"], "restore-tables-not-found", "app.totals"),
        (&["*.orders"], "restore-tables-collide", "other.orders"),
    ] {
        let fault = into_schema(&bed, backup(&manifest), tables).await.unwrap_err();
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains(word), "{fault}");
    }
    bed.cluster.execute("live", "DROP TABLE app.typed; DROP TYPE app.gone").await.unwrap();
    let fault = into_schema(&bed, backup(&manifest), &["app.*"]).await.unwrap_err();
    assert_eq!(fault.code, "restore-definition-missing", "{fault}");
    assert!(fault.message.contains("app.gone") && fault.message.contains("typed"), "{fault}");

    // Damage is told by table, and nothing of the schema stays.
    let artifact = &manifest.artifacts["dump"];
    let table = manifest.tables.iter().find(|table| table.name == "orders" && table.schema == "app").unwrap();
    let mut damaged = bed.get(&artifact.key).await;
    let piece = table.pieces[0];
    damaged[(piece.offset + piece.length / 2) as usize] ^= 0x10;
    let mut of_damage = manifest.clone();
    of_damage.artifacts.get_mut("dump").unwrap().version_id = put(&bed, &artifact.key, damaged).await.0;
    let fault = into_schema(&bed, backup(&of_damage), &["app.customers", "app.orders"]).await.unwrap_err();
    assert!(fault.message.contains("orders"), "{fault}");
    assert_eq!(schemas(&bed).await, Vec::<String>::new());
    let mut expected = before;
    expected.remove("app.typed");
    assert_eq!(bed.contents("live").await, expected);

    // In the place of live rows: what was there is there.
    let fault = in_place(&bed, &of_damage, &["app.orders"]).await.unwrap_err();
    assert!(fault.message.contains("orders"), "{fault}");
    assert_eq!(bed.contents("live").await, expected);
}

const ACTIVE: &str = "
CREATE TABLE app.log (what text);
CREATE FUNCTION app.logged() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO app.log VALUES (TG_OP); RETURN NULL; END';
CREATE TRIGGER logged AFTER INSERT OR UPDATE OR DELETE ON app.orders FOR EACH ROW EXECUTE FUNCTION app.logged();
CREATE TRIGGER emptied AFTER TRUNCATE ON app.orders FOR EACH STATEMENT EXECUTE FUNCTION app.logged();
ALTER TABLE app.orders ENABLE ALWAYS TRIGGER logged;
CREATE TRIGGER of_parts AFTER INSERT ON app.events FOR EACH ROW EXECUTE FUNCTION app.logged();
ALTER TABLE app.orders DISABLE TRIGGER touch;
ALTER TABLE app.secrets FORCE ROW LEVEL SECURITY;
CREATE TABLE app.ref (id serial PRIMARY KEY, orders bigint REFERENCES app.orders, own int REFERENCES app.ref DEFERRABLE);
INSERT INTO app.ref (orders) SELECT id FROM app.orders ORDER BY id LIMIT 10;
UPDATE app.ref SET own = 1;
COMMENT ON CONSTRAINT ref_orders_fkey ON app.ref IS 'it''s told';
TRUNCATE app.log";

/// What hangs on the tables of the schema.
async fn hanging(client: &Client) -> Vec<String> {
    let sql = "SELECT pg_catalog.format('%s %s %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint'))
                 FROM pg_constraint WHERE contype = 'f'
               UNION ALL SELECT pg_catalog.format('%s %s %s', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
               UNION ALL SELECT pg_catalog.format('%s %s', oid::regclass, relforcerowsecurity) FROM pg_class WHERE relrowsecurity
               ORDER BY 1";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn rows_come_back_in_place(major: u16) {
    let (bed, manifest) = live(major, ACTIVE).await;
    let before = bed.contents("live").await;
    let client = bed.cluster.connect("live").await.unwrap();
    let hung = hanging(&client).await;
    let changes = "DELETE FROM app.ref; DELETE FROM app.orders WHERE id % 2 = 0; UPDATE app.orders SET note = 'changed';
                   INSERT INTO app.orders (customer, quantity, price) SELECT 1, 1, 1 FROM generate_series(1, 100);
                   INSERT INTO app.ref (orders) SELECT id FROM app.orders ORDER BY id LIMIT 5;
                   DELETE FROM app.events WHERE at < '2024-01-20'; UPDATE app.secrets SET secret = 'lost';
                   CREATE TABLE app.events_2026 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
                   INSERT INTO app.events VALUES ('2026-02-02', 'new', '{}');
                   ALTER TABLE app.customers ADD COLUMN since int DEFAULT 5;
                   REFRESH MATERIALIZED VIEW app.summary; TRUNCATE app.log";
    bed.cluster.execute("live", changes).await.unwrap();

    // Whoever reads meanwhile sees all of the old rows or all of the backup's.
    let reader = bed.cluster.connect("live").await.unwrap();
    let sql = "SELECT count(*), count(*) FILTER (WHERE note = 'changed') FROM app.orders";
    let counts = async |client: &Client| -> (i64, i64) {
        let row = client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let old = counts(&client).await;
    let reading = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|&(_, changed)| changed != 0) {
            let row = reader.query_one(sql, &[]).await.unwrap();
            seen.push((row.get(0), row.get(1)));
        }
        seen
    });
    let tables = ["app.orders", "app.ref", "app.events", "app.secrets", "app.customers"];
    let receipt = in_place(&bed, &manifest, &tables).await.unwrap();
    assert_eq!(receipt.proved_by, "fingerprints");
    let mut seen = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    seen.dedup();
    assert_eq!(seen, [old, counts(&client).await]);

    client.batch_execute("ALTER TABLE app.customers DROP COLUMN since").await.unwrap();
    let mut after = bed.contents("live").await;
    assert_eq!(after.remove("app.events_2026").as_deref(), Some("0 rows 0"));
    // Triggers wrote nothing, and what is derived is as it was a moment ago.
    let stale = after.remove("app.summary");
    let mut expected = before.clone();
    assert_ne!(stale, expected.remove("app.summary"));
    assert_eq!(after, expected);
    let mut hangs = hanging(&client).await;
    hangs.retain(|line| !line.contains("events_2026"));
    assert_eq!(hangs, hung);
    let notes = receipt.notes.join("; ");
    for told in ["app.events_2026 was emptied", "app.summary was not refreshed", "app.orders_id_seq stood at"] {
        assert!(notes.contains(told), "{told} in {notes}");
    }
    // Inserts go on to work, triggers to fire, keys to hold.
    client.batch_execute("INSERT INTO app.orders (customer, quantity, price) VALUES (1, 1, 1); INSERT INTO app.ref (orders) VALUES (1001)").await.unwrap();
    assert_eq!(client.query_one("SELECT count(*) FROM app.log", &[]).await.unwrap().get::<_, i64>(0), 1);
    assert!(client.batch_execute("INSERT INTO app.ref (orders) VALUES (99999)").await.is_err());
}

macro_rules! majors_in_place {
    ($($name:ident: $major:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() { rows_come_back_in_place($major).await; })*
    };
}

majors_in_place! {
    rows_come_back_in_place_13: 13;
    rows_come_back_in_place_18: 18;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_place_are_refused_where_anything_would_not_fit() {
    let (bed, manifest) = live(17, ACTIVE).await;
    let client = bed.cluster.connect("live").await.unwrap();
    // Rows elsewhere that need what the backup does not have, and rows of the backup that need what is gone.
    let changes = "INSERT INTO app.orders (id, customer, quantity, price) VALUES (500000, 1, 1, 1);
                   INSERT INTO app.ref (orders) VALUES (500000); CREATE TABLE app.renamed (a int, b int NOT NULL);
                   DELETE FROM app.customers WHERE id > 300";
    bed.cluster.execute("live", changes).await.unwrap();
    let (before, hung) = (bed.contents("live").await, hanging(&client).await);
    let fault = in_place(&bed, &manifest, &["app.orders"]).await.unwrap_err();
    assert_eq!(fault.code, "restore-rows-would-dangle", "{fault}");
    for key in ["ref_orders_fkey of app.ref", "orders_customer_fkey of app.orders", "500000"] {
        assert!(fault.message.contains(key), "{key} in {fault}");
    }
    assert_eq!((bed.contents("live").await, hanging(&client).await), (before.clone(), hung.clone()));

    // A session that holds the table: the wait ends, and nothing has changed.
    let holder = bed.cluster.connect("live").await.unwrap();
    holder.batch_execute("BEGIN; SELECT count(*) FROM app.dropped").await.unwrap();
    let asked = Restore::TablesInPlace { database: "live".into(), tables: patterns(&["app.dropped"]) };
    let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
    let mut impatient = engine(&bed).await;
    impatient.lock_timeout = Duration::from_millis(300);
    assert_eq!(impatient.carry_out(clearance).await.unwrap_err().code, "table-locked");
    holder.batch_execute("ROLLBACK").await.unwrap();

    for (change, code, word) in [
        ("ALTER TABLE app.dropped RENAME COLUMN keep2 TO other", "restore-columns-differ", "keep2"),
        ("ALTER TABLE app.dropped RENAME COLUMN other TO keep2; ALTER TABLE app.dropped ADD COLUMN must int; UPDATE app.dropped SET must = 1;
          ALTER TABLE app.dropped ALTER COLUMN must SET NOT NULL", "restore-columns-differ", "must"),
        ("DROP TABLE app.dropped", "restore-table-missing", "dropped"),
    ] {
        bed.cluster.execute("live", change).await.unwrap();
        let fault = in_place(&bed, &manifest, &["app.dropped"]).await.unwrap_err();
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains(word), "{fault}");
    }
    let mut expected = before;
    expected.remove("app.dropped");
    assert_eq!(bed.contents("live").await, expected);

    // Rows that were left out of the backup are not replaced by nothing.
    bed.register_export("live", &[("EXCLUDE_TABLE_DATA", "app.ref")]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let without = bed.manifest(&receipt).await;
    let fault = in_place(&bed, &without, &["app.ref"]).await.unwrap_err();
    assert_eq!(fault.code, "restore-table-without-rows", "{fault}");
    assert_eq!(bed.contents("live").await, expected);
}
