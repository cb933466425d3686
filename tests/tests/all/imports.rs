//! Archives of stock `pg_dump`s of every major under `imports/`: what our restore makes of them is what stock
//! `pg_restore` makes of them.

use std::collections::BTreeMap;
use std::process::Command;

use holdfast_local::postgres::Installation;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::Source;
use restore_trigger::engine::Receipt;

use crate::bed::{Bed, run};
use crate::engine::{exists, put, restore};
use crate::schema;

/// What a database can hold besides [`schema`], for the sake of its definitions.
const RARE: &str = r#"
CREATE FUNCTION app.same(text, text) RETURNS bool LANGUAGE sql IMMUTABLE AS $body$ SELECT $1 = $2 /* ; */ -- ;
$body$;
CREATE FUNCTION app."begin"() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION app."begin"() DEPENDS ON EXTENSION plpgsql;
CREATE FUNCTION app.quoted() RETURNS text LANGUAGE sql AS $$ SELECT E'\';' || '\' || $q$;'$q$ $$;
CREATE OPERATOR app.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = app.same);
CREATE AGGREGATE app.total (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE OPERATOR FAMILY app.family USING btree;
CREATE OPERATOR CLASS app.class FOR TYPE int USING btree FAMILY app.family AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
CREATE COLLATION app.plain (LOCALE = 'C');
CREATE CONVERSION app.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE CAST (app.mood AS int) WITH INOUT;
CREATE TYPE app.reach AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = float8mi);
CREATE TYPE app.shell;
CREATE DOMAIN app.short AS text COLLATE app.plain CONSTRAINT length CHECK (length(VALUE) < 9) DEFAULT ';';
COMMENT ON CONSTRAINT length ON DOMAIN app.short IS 'a '';'' in it';
CREATE TEXT SEARCH DICTIONARY app.words (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION app.search (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION app.search ALTER MAPPING FOR word WITH app.words;
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing OPTIONS (host 'a;b');
CREATE USER MAPPING FOR reporting SERVER elsewhere OPTIONS (password 'it''s');
CREATE FOREIGN TABLE app.far (a int OPTIONS (name ';')) SERVER elsewhere;
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE app.other_heap (a int) USING heap2;
INSERT INTO app.other_heap SELECT generate_series(1, 10);
CREATE PROCEDURE app.work() LANGUAGE plpgsql AS 'BEGIN NULL; END';
CREATE UNLOGGED TABLE app.counted (id int GENERATED ALWAYS AS IDENTITY (START 7), more bigserial);
INSERT INTO app.counted DEFAULT VALUES;
CREATE TABLE app.log (a int, b text DEFAULT 'x;');
CREATE RULE several AS ON INSERT TO app.log DO ALSO (DELETE FROM app.empty; UPDATE app.empty SET x = 1; NOTIFY log);
CREATE FUNCTION app.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION app.watch();
CREATE TABLE app.hen (id int PRIMARY KEY, egg int);
CREATE TABLE app.egg (id int PRIMARY KEY, hen int REFERENCES app.hen DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE app.hen ADD FOREIGN KEY (egg) REFERENCES app.egg DEFERRABLE INITIALLY DEFERRED;
BEGIN; INSERT INTO app.hen VALUES (1, 1); INSERT INTO app.egg VALUES (1, 1); COMMIT;
CREATE TABLE app.hashed (k app.mood, v int) PARTITION BY HASH (k);
CREATE TABLE app.hashed_0 PARTITION OF app.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE app.hashed_1 PARTITION OF app.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO app.hashed SELECT (ARRAY['sad','ok','happy'])[1 + g % 3]::app.mood, g FROM generate_series(1, 100) g;
ALTER TABLE app.hashed ADD UNIQUE (k, v);
CREATE TABLE app.clustered (a int, b int NOT NULL);
INSERT INTO app.clustered SELECT g, g FROM generate_series(1, 50) g;
CREATE UNIQUE INDEX clustered_b ON app.clustered (b);
ALTER TABLE app.clustered CLUSTER ON clustered_b;
ALTER TABLE app.clustered REPLICA IDENTITY USING INDEX clustered_b;
CREATE MATERIALIZED VIEW app.of_summary AS SELECT max(n) FROM app.summary;
CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 port=1 connect_timeout=1' PUBLICATION there WITH (connect = false);
GRANT USAGE ON SCHEMA app TO reporting; GRANT SELECT ON app.log TO reporting WITH GRANT OPTION;
SET ROLE reporting; GRANT SELECT ON app.log TO pg_monitor; RESET ROLE;
"#;

const ATOMIC: &str = "CREATE FUNCTION app.atomic(a int) RETURNS int LANGUAGE sql
    BEGIN ATOMIC INSERT INTO app.empty VALUES (a); SELECT CASE WHEN a > 0 THEN 1 ELSE 2 END; END;";

struct Scene {
    bed: Bed,
    client: Installation,
    /// What archives are made by.
    dumper: Installation,
    contents: BTreeMap<String, String>,
    schema: String,
}

impl Scene {
    async fn start(major: u16) -> Self {
        let bed = Bed::start(major).await;
        schema::create(&bed.cluster, "source", 300).await;
        bed.cluster.execute("source", RARE).await.unwrap();
        if major >= 14 {
            bed.cluster.execute("source", ATOMIC).await.unwrap();
        }
        let client = Installation::client_at_least(major).unwrap();
        let dumper = client.clone();
        let (contents, schema) = (contents(&bed, "source").await, bed.schema(&client, "source"));
        Self { bed, client, dumper, contents, schema }
    }

    fn dump(&self, options: &[&str]) -> Vec<u8> {
        let file = self.bed.directory.path().join("import.dump");
        let url = self.bed.cluster.url("source");
        let mut options: Vec<&str> = options.to_vec();
        let piped = options.iter().position(|option| *option == "piped").map(|at| options.remove(at));
        let mut pg_dump = self.dumper.command("pg_dump");
        pg_dump.args(["-Fc", "--dbname", &url]).args(options);
        if piped.is_none() {
            run(pg_dump.arg("--file").arg(&file));
            return std::fs::read(&file).unwrap();
        }
        // Standard output would be a file that can be sought in; `cat` makes it a pipe.
        let mut child = pg_dump.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let cat = Command::new("cat").stdin(child.stdout.take().unwrap()).output().unwrap();
        assert!(child.wait().unwrap().success());
        cat.stdout
    }

    async fn import(&self, dump: Vec<u8>) -> Result<Receipt, Fault> {
        import(&self.bed, dump).await
    }

    async fn drop(&self, database: &str) {
        let subscriptions =
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
              WHERE datname = current_database()) THEN ALTER SUBSCRIPTION feed SET (slot_name = NONE); END IF; END $$;
            DROP SUBSCRIPTION IF EXISTS feed";
        self.bed.cluster.execute(database, subscriptions).await.unwrap();
        self.bed.cluster.execute("postgres", &format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
    }

    /// Everything that the source has, and nothing else.
    async fn is_restored_from(&self, options: &[&str]) {
        let receipt = self.import(self.dump(options)).await.unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        assert_eq!((receipt.proved_by, receipt.errors.len()), ("row counts", 0), "{options:?}");
        assert_eq!(receipt.left_out, Vec::<String>::new(), "{options:?}");
        assert_eq!(contents(&self.bed, "imported").await, self.contents, "{options:?}");
        assert_eq!(self.bed.schema(&self.client, "imported"), self.schema, "{options:?}");
        self.drop("imported").await;
    }

    /// What stock `pg_restore` makes of it.
    async fn is_as_stock_restores_it(&self, options: &[&str], restore_options: &[&str]) {
        let dump = self.dump(options);
        let file = self.bed.directory.path().join("stock.dump");
        std::fs::write(&file, &dump).unwrap();
        self.import(dump).await.unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        self.bed.restore(&self.client, &file, "stock", restore_options).await;
        assert_eq!(contents(&self.bed, "imported").await, contents(&self.bed, "stock").await, "{options:?}");
        let [ours, stock] = ["imported", "stock"].map(|database| self.bed.schema(&self.client, database));
        assert_eq!(ours, stock, "{options:?}");
        self.drop("imported").await;
        self.drop("stock").await;
    }
}

/// Values of an enum hash by their oids: which partition a row lies in is another matter in every database.
async fn contents(bed: &Bed, database: &str) -> BTreeMap<String, String> {
    let mut contents = bed.contents(database).await;
    if contents.remove("app.hashed_0").is_some() && contents.remove("app.hashed_1").is_some() {
        let client = bed.cluster.connect(database).await.unwrap();
        let sql = "SELECT md5(string_agg(h::text, ',' ORDER BY v)) FROM app.hashed h";
        let row = client.query_one(sql, &[]).await.unwrap();
        contents.insert("app.hashed".to_owned(), row.get::<_, Option<String>>(0).unwrap_or_default());
    }
    contents
}

pub async fn import(bed: &Bed, dump: Vec<u8>) -> Result<Receipt, Fault> {
    let (version_id, size_bytes) = put(bed, "imports/old/one.dump", dump).await;
    let name = "old/one.dump".parse().unwrap();
    restore(bed, Source::Import { name, size_bytes, version_id }, "imported").await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_13_and_14_by_a_newer_pg_dump() {
    // No client of these majors is to be had: 15's archive version is theirs.
    for major in [13, 14] {
        let scene = Scene::start(major).await;
        scene.is_restored_from(&[]).await;
    }
}

/// As the export does, with the newest there is. It writes options of subscriptions, kinds of sequences and statistics that
/// older servers do not know.
#[tokio::test(flavor = "multi_thread")]
async fn of_older_servers_by_the_newest_pg_dump() {
    for major in [13, 15, 17] {
        let mut scene = Scene::start(major).await;
        scene.dumper = Installation::client(18).unwrap();
        scene.is_restored_from(&["--statistics"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_15() {
    let scene = Scene::start(15).await;
    for options in [
        &[][..],
        &["--compress=0", "piped"],
        &["--inserts"],
        &["--rows-per-insert=70", "--column-inserts", "--load-via-partition-root", "piped"],
        &["--load-via-partition-root"],
    ] {
        scene.is_restored_from(options).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_16() {
    let scene = Scene::start(16).await;
    scene.is_restored_from(&["piped"]).await;
    scene.is_restored_from(&["--inserts", "--compress=none"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_17() {
    let scene = Scene::start(17).await;
    for options in [
        &["--compress=lz4"][..],
        &["--compress=lz4:9", "--inserts", "piped"],
        &["--compress=zstd"],
        &["--compress=zstd:19", "piped"],
        &["--compress=zstd:long"],
    ] {
        scene.is_restored_from(options).await;
    }
    scene.is_as_stock_restores_it(&["--no-owner", "--no-privileges", "--compress=zstd"], &[]).await;
    scene.is_as_stock_restores_it(&["--schema-only"], &[]).await;
    let chosen = ["--schema=app", "--exclude-table=app.far", "--exclude-table=app.other_heap", "--no-blobs"];
    scene.is_as_stock_restores_it(&chosen, &[]).await;
    scene
        .is_as_stock_restores_it(&["--exclude-table-data=app.customers", "--exclude-table-data=app.orders"], &[])
        .await;

    for part in ["--data-only", "--section=data", "--section=post-data"] {
        let fault = scene.import(scene.dump(&[part])).await.unwrap_err();
        assert_eq!(fault.code, "archive-without-definitions", "{fault}");
        assert!(!exists(&scene.bed, "imported").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_18() {
    let scene = Scene::start(18).await;
    scene.is_restored_from(&["--statistics"]).await;
    scene.is_restored_from(&["--load-via-partition-root", "--quote-all-identifiers", "piped"]).await;

    // Statistics of rows that do not come along.
    scene.import(scene.dump(&["--no-data", "--statistics"])).await.unwrap();
    let rows = "SELECT reltuples FROM pg_class WHERE oid = 'app.customers'::regclass";
    let counted = scene.bed.cluster.connect("imported").await.unwrap().query_one(rows, &[]).await.unwrap();
    assert_eq!(counted.get::<_, f32>(0), 300.0);
    scene.drop("imported").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_roles_had_that_are_not_there_is_told_and_others_have_theirs() {
    let scene = Scene::start(17).await;
    let theirs = r#"CREATE ROLE "gone; ""role"; CREATE TABLE app.theirs (a int); ALTER TABLE app.theirs OWNER TO "gone; ""role";
        ALTER FUNCTION app.double(int) OWNER TO "gone; ""role"; GRANT SELECT (x) ON app.empty TO "gone; ""role";
        ALTER DEFAULT PRIVILEGES FOR ROLE "gone; ""role" GRANT SELECT ON TABLES TO reporting;
        CREATE USER MAPPING FOR "gone; ""role" SERVER elsewhere; CREATE USER MAPPING FOR PUBLIC SERVER elsewhere;
        GRANT USAGE ON SCHEMA app TO "gone; ""role" WITH GRANT OPTION; SET ROLE "gone; ""role"; GRANT USAGE ON SCHEMA app TO pg_monitor"#;
    scene.bed.cluster.execute("source", theirs).await.unwrap();
    let dump = scene.dump(&[]);
    let gone =
        r#"REASSIGN OWNED BY "gone; ""role" TO postgres; DROP OWNED BY "gone; ""role"; DROP ROLE "gone; ""role""#;
    scene.bed.cluster.execute("source", gone).await.unwrap();

    let receipt = scene.import(dump).await.unwrap();
    let told = receipt.left_out.join("\n");
    for expected in [
        r#"TABLE app.theirs is not gone; "role's: there is no such role"#,
        r#"FUNCTION app.double(integer) is not gone; "role's"#,
        r#"ACL app.COLUMN empty.x: there is no role gone; "role"#,
        r#"DEFAULT ACL DEFAULT PRIVILEGES FOR TABLES: there is no role gone; "role"#,
        r#"USER MAPPING USER MAPPING gone; "role SERVER elsewhere: there is no role gone; "role"#,
    ] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    let client = scene.bed.cluster.connect("imported").await.unwrap();
    let others = "SELECT has_schema_privilege('reporting', 'app', 'USAGE'), (SELECT count(*) FROM pg_user_mappings)";
    let row = client.query_one(others, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i64>(1)), (true, 2));
}

/// A restore that fails late has made a subscription, which keeps a database from being dropped.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_one_that_fails_late() {
    let scene = Scene::start(17).await;
    let broken = "CREATE FUNCTION app.fails() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1 / (SELECT count(*) FROM app.orders WHERE id < 0); END';
        CREATE MATERIALIZED VIEW app.zz AS SELECT 1 AS a UNION ALL SELECT 2 WITH NO DATA;
        CREATE OR REPLACE FUNCTION app.one() RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE MATERIALIZED VIEW app.fragile AS SELECT app.one();
        CREATE OR REPLACE FUNCTION app.one() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN app.fails(); END'";
    scene.bed.cluster.execute("source", broken).await.unwrap();
    let fault = scene.import(scene.dump(&[])).await.unwrap_err();
    assert_eq!(fault.code, "restore-object-failed", "{fault}");
    assert!(fault.message.contains("app.fragile"), "{fault}");
    assert!(!exists(&scene.bed, "imported").await);
}
