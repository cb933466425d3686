//! Restores of what applications do with a database: owners of their own, row security, event triggers, extensions' tables.

use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use holdfast_shared::plan::clearance::{Restore, Source};

use crate::bed::{Bed, extension, run};
use crate::engine::{backup, cleared, cleared_with, engine, exported, put, restore};
use crate::imports::import;
use crate::restore_roles::{MASTER, by_master};

async fn text(bed: &Bed, database: &str, sql: &str) -> String {
    let row = bed.cluster.connect(database).await.unwrap().query_one(sql, &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

fn dump(bed: &Bed, database: &str, options: &[&str]) -> Vec<u8> {
    let client = Installation::client_at_least(bed.cluster.major()).unwrap();
    let file = bed.directory.path().join("apps.dump");
    run(client
        .command("pg_dump")
        .args(["-Fc", "--dbname", &bed.cluster.url(database)])
        .args(options)
        .arg("-f")
        .arg(&file));
    std::fs::read(&file).unwrap()
}

/// The database and what is in its schema `public` are the application's; the restoring role is no superuser.
const APP: &str = "
CREATE ROLE app; CREATE ROLE team; GRANT app TO master; GRANT team TO master;
ALTER DATABASE live OWNER TO app;
CREATE TABLE public.visits (a int); INSERT INTO public.visits VALUES (1); ALTER TABLE public.visits OWNER TO app;
CREATE SCHEMA shared AUTHORIZATION app; GRANT USAGE, CREATE ON SCHEMA shared TO team;
CREATE TABLE shared.plans (a int); ALTER TABLE shared.plans OWNER TO team;
CREATE TABLE public.tenants (a int); INSERT INTO public.tenants VALUES (7); ALTER TABLE public.tenants OWNER TO app;
ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY; ALTER TABLE public.tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON public.tenants USING (false)";

const OWNERS: &str = "SELECT string_agg(tablename || ' ' || tableowner, ', ' ORDER BY tablename) FROM pg_tables
                       WHERE schemaname IN ('public', 'shared')";

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_owns_its_database_owns_the_restored_one() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    bed.cluster.execute("live", MASTER).await.unwrap();
    bed.cluster.execute("live", APP).await.unwrap();
    let manifest = exported(&bed, "live").await;
    let before = (bed.contents("live").await, text(&bed, "live", OWNERS).await);
    assert_eq!(before.1, "plans team, tenants app, visits app");

    // Nothing is done to the live tables, not even for a moment.
    let version = "SELECT xmin::text FROM pg_class WHERE relname = 'tenants'";
    let untouched = text(&bed, "live", version).await;
    let tables = vec!["public.visits".parse().unwrap()];
    let asked = Restore::TablesIntoSchema { database: "live".into(), schema: "restore_x".into(), tables };
    by_master(&bed).await.carry_out(cleared(&bed, asked, backup(&manifest), None).await).await.unwrap();
    assert_eq!(text(&bed, "live", version).await, untouched);
    bed.cluster.execute("live", "DROP SCHEMA restore_x CASCADE").await.unwrap();

    let swap = Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_before".into() };
    let new = Restore::NewDatabase { database: "copy".into() };
    for (asked, database) in [(swap, "live"), (new, "copy")] {
        let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
        let receipt = by_master(&bed).await.carry_out(clearance).await.unwrap();
        let not_given: Vec<_> = receipt.left_out.iter().filter(|told| told.contains("cannot be given")).collect();
        assert!(not_given.is_empty(), "{not_given:?}");
        assert_eq!((bed.contents(database).await, text(&bed, database, OWNERS).await), before, "{database}");
        let owner = format!("SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = '{database}'");
        assert_eq!(text(&bed, "postgres", &owner).await, "app");
        bed.cluster
            .execute(
                database,
                "SET ROLE app; INSERT INTO public.visits VALUES (2); DELETE FROM public.visits WHERE a = 2",
            )
            .await
            .unwrap();
    }
}

/// Definitions are logged, and views are refreshed; large objects in a database of old string literals.
const REACTING: &str = r"
CREATE TABLE public.ddl (at timestamptz, what text);
CREATE FUNCTION public.log_ddl() RETURNS event_trigger LANGUAGE plpgsql
    AS $$BEGIN INSERT INTO public.ddl VALUES (now(), tg_tag); END$$;
CREATE MATERIALIZED VIEW public.seen AS SELECT current_setting('lock_timeout') AS lock_timeout, count(*) FROM public.ddl;
CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION public.log_ddl();
COMMENT ON EVENT TRIGGER log_ddl IS 'x';
CREATE TABLE public.before_that (a int);
SELECT lo_from_bytea(77, '\x00417fff80275c');
ALTER DATABASE reacting SET standard_conforming_strings = off";

#[tokio::test(flavor = "multi_thread")]
async fn what_reacts_to_definitions_changes_nothing_that_is_proved() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("reacting").await.unwrap();
    bed.cluster.execute("reacting", REACTING).await.unwrap();
    let manifest = exported(&bed, "reacting").await;
    let receipt = restore(&bed, backup(&manifest), "copy").await.unwrap();
    assert_eq!(receipt.left_out, Vec::<String>::new());
    assert_eq!(receipt.notes, ["not restored, being about the database as a whole: DATABASE PROPERTIES reacting"]);
    for of in ["public.ddl", "public.before_that", "large object 77"] {
        assert_eq!(bed.contents("copy").await[of], bed.contents("reacting").await[of], "{of}");
    }
    let triggers = "SELECT count(*)::text || obj_description(max(oid), 'pg_event_trigger') FROM pg_event_trigger";
    assert_eq!(text(&bed, "copy", triggers).await, "1x");
    assert_eq!(text(&bed, "copy", "SELECT encode(lo_get(77), 'hex')").await, "00417fff80275c");
    // In a database of its own a restore waits for its own locks as long as they take.
    assert_eq!(text(&bed, "copy", "SELECT lock_timeout FROM public.seen").await, "0");

    // A dump of one schema makes it, although every database has this one.
    let imported = import(&bed, dump(&bed, "reacting", &["-n", "public"])).await.unwrap();
    assert_eq!((imported.errors, imported.left_out), (Vec::new(), Vec::new()));
    assert_eq!(bed.contents("imported").await["public.ddl"], bed.contents("reacting").await["public.ddl"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_extension_brings_is_not_taken_for_the_backups_and_what_is_missing_is_left() {
    // With rows of its own, as PostGIS has.
    let brings = "CREATE TABLE brought (a int PRIMARY KEY, own boolean);
         INSERT INTO brought SELECT g, true FROM generate_series(1, 40) g; GRANT SELECT ON brought TO PUBLIC;
         SELECT pg_catalog.pg_extension_config_dump('brought', 'WHERE NOT own');";
    let directory = extension("brings", brings);
    let path = format!("{}:$system", directory.path().display());
    let options = ClusterOptions::major(18).setting("extension_control_path", path.as_str());
    let bed = Bed::with_cluster(Cluster::start(options).await.unwrap()).await;
    bed.cluster.create_database("source").await.unwrap();
    let sql = "CREATE EXTENSION brings SCHEMA public; CREATE EXTENSION citext;
               CREATE TABLE plain (a int); INSERT INTO plain VALUES (1), (2);
               CREATE TABLE names (a citext PRIMARY KEY); INSERT INTO names VALUES ('x')";
    bed.cluster.execute("source", sql).await.unwrap();
    let brought = bed.contents("source").await["public.brought"].clone();
    import(&bed, dump(&bed, "source", &[])).await.unwrap();
    assert_eq!(bed.contents("imported").await["public.brought"], brought);
    bed.cluster.execute("postgres", "DROP DATABASE imported").await.unwrap();
    bed.cluster.execute("source", "INSERT INTO brought VALUES (100, false)").await.unwrap();
    import(&bed, dump(&bed, "source", &[])).await.unwrap();
    assert_eq!(bed.contents("imported").await, bed.contents("source").await);
    bed.cluster.execute("postgres", "DROP DATABASE imported").await.unwrap();

    // Who may not write to the extension's table loads none into it.
    bed.cluster
        .execute("source", "DELETE FROM brought WHERE NOT own; DROP TABLE names; DROP EXTENSION citext")
        .await
        .unwrap();
    bed.cluster.execute("postgres", &MASTER.replace("DATABASE live", "DATABASE source")).await.unwrap();
    let manifest = exported(&bed, "source").await;
    let asked = Restore::NewDatabase { database: "copy".into() };
    let receipt = by_master(&bed).await.carry_out(cleared(&bed, asked, backup(&manifest), None).await).await.unwrap();
    assert_eq!(receipt.proved_by, "fingerprints");

    // What the target does not have is left, with all that needs it, where that is asked for.
    bed.cluster
        .execute(
            "source",
            "CREATE EXTENSION citext; CREATE TABLE names (a citext PRIMARY KEY); INSERT INTO names VALUES ('x')",
        )
        .await
        .unwrap();
    let mut archive = dump(&bed, "source", &[]);
    while let Some(at) = archive.windows(6).position(|window| window == b"citext") {
        archive[at + 5] = b'x';
    }
    let size_bytes = put(&bed, "imports/other.dump", archive).await.1;
    let source = Source::Import { name: "other.dump".parse().unwrap(), size_bytes, version_id: None };
    let asked = Restore::NewDatabase { database: "parts".into() };
    let clearance = cleared_with(&bed, asked, source, None, |options| options.continue_on_error = true).await;
    let receipt = engine(&bed).await.carry_out(clearance).await.unwrap();
    let errors = receipt.errors.join("\n");
    for part in ["EXTENSION citexx", "TABLE public.names", "rows of public.names: the table is not there"] {
        assert!(errors.contains(part), "{part} in\n{errors}");
    }
    let contents = bed.contents("parts").await;
    assert_eq!(contents["public.plain"], bed.contents("source").await["public.plain"]);
    assert!(!contents.contains_key("public.names"));
}
