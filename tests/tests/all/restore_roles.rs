//! Restores by a role that is no superuser, as on RDS: it may create databases and roles, and end sessions.

use std::time::{Duration, Instant};

use holdfast_shared::plan::clearance::{Restore, Source};
use holdfast_shared::postgres::connect::Target;
use restore_trigger::engine::{Engine, Receipt};

use crate::bed::Bed;
use crate::engine::{backup, cleared, cleared_with, engine, exists, exported, put};
use crate::schema;

pub const MASTER: &str = "
CREATE ROLE master LOGIN PASSWORD 'master-password' CREATEDB CREATEROLE;
GRANT pg_signal_backend TO master;
CREATE ROLE clerk; CREATE ROLE stranger; GRANT clerk TO master;
GRANT EXECUTE ON FUNCTION pg_control_system() TO master;
ALTER DATABASE live OWNER TO master";

/// What only a superuser can make, or give to others.
const SPECIAL: &str = "
CREATE FUNCTION app.noted() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION app.noted();
COMMENT ON EVENT TRIGGER noted IS 'x';
CREATE PUBLICATION everything FOR ALL TABLES;
COMMENT ON PUBLICATION everything IS 'x';
CREATE CAST (bigint AS timestamptz) WITHOUT FUNCTION;
CREATE SCHEMA office AUTHORIZATION clerk; CREATE TABLE office.clerks (a int); CREATE TABLE app.strangers (a int); CREATE TABLE app.ghosts (a int);
INSERT INTO office.clerks VALUES (1); INSERT INTO app.strangers VALUES (2); INSERT INTO app.ghosts VALUES (3);
CREATE ROLE ghost; ALTER TABLE app.ghosts OWNER TO ghost; GRANT SELECT ON office.clerks TO ghost, reporting;
ALTER TABLE office.clerks OWNER TO clerk; ALTER TABLE app.strangers OWNER TO stranger;
CREATE EXTENSION pageinspect; CREATE EXTENSION citext;
CREATE FUNCTION app.shout(text) RETURNS text LANGUAGE internal STRICT IMMUTABLE AS 'upper';
COMMENT ON FUNCTION app.shout(text) IS 'x'; GRANT EXECUTE ON FUNCTION app.shout(text) TO reporting;
CREATE FUNCTION app.handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE LANGUAGE other HANDLER app.handler; CREATE FUNCTION app.other() RETURNS int LANGUAGE other AS 'BEGIN RETURN 1; END';
CREATE OPERATOR CLASS app.ordered FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 btint4cmp(int, int);
CREATE TABLE app.guarded (a citext); INSERT INTO app.guarded VALUES ('seven');
ALTER TABLE app.guarded ENABLE ROW LEVEL SECURITY; ALTER TABLE app.guarded FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON app.guarded USING (false);
CREATE MATERIALIZED VIEW app.seen AS TABLE app.guarded";

/// One may become this role, and has not its rights as oneself.
const DISTANT: &str = "
CREATE ROLE distant; GRANT distant TO master WITH INHERIT FALSE, SET TRUE; CREATE SCHEMA far AUTHORIZATION distant;
CREATE TABLE far.away (a int); INSERT INTO far.away VALUES (4); ALTER TABLE far.away OWNER TO distant";

pub async fn by_master(bed: &Bed) -> Engine {
    let url = bed.cluster.url_as("master", "master-password", "postgres");
    Engine { target: Target::from_url(&url).unwrap(), ..engine(bed).await }
}

async fn owner(bed: &Bed, database: &str, table: &str) -> String {
    let client = bed.cluster.connect(database).await.unwrap();
    let sql = "SELECT tableowner::text FROM pg_tables WHERE tablename = $1";
    client.query_one(sql, &[&table]).await.unwrap().get(0)
}

fn told(receipt: &Receipt, words: &[&str]) {
    let left_out = receipt.left_out.join("\n");
    for word in words {
        assert!(left_out.contains(word), "{word} in\n{left_out}");
    }
}

async fn a_role_of_rds_restores(major: u16) {
    let bed = Bed::start(major).await;
    schema::create(&bed.cluster, "live", 200).await;
    bed.cluster.execute("live", MASTER).await.unwrap();
    bed.cluster.execute("live", SPECIAL).await.unwrap();
    if major >= 16 {
        bed.cluster.execute("live", DISTANT).await.unwrap();
    }
    let manifest = exported(&bed, "live").await;
    let before = bed.contents("live").await;
    // A role that is gone by now.
    let gone = "ALTER TABLE app.ghosts OWNER TO postgres; DROP OWNED BY ghost; DROP ROLE ghost";
    bed.cluster.execute("live", gone).await.unwrap();

    let asked = Restore::NewDatabase { database: "copy".into() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    let receipt = by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!((receipt.proved_by, receipt.errors.as_slice()), ("fingerprints", [].as_slice()));
    assert_eq!(bed.contents("copy").await, before);
    assert_eq!(owner(&bed, "copy", "clerks").await, "clerk");
    assert_eq!(owner(&bed, "copy", "strangers").await, "master");
    told(
        &receipt,
        &[
            "EVENT TRIGGER noted",
            "PUBLICATION everything",
            "CAST",
            "stranger",
            "no role ghost",
            "COMMENT PUBLICATION everything",
            "EXTENSION pageinspect needs a superuser",
            "COMMENT EXTENSION pageinspect: EXTENSION pageinspect is not there",
            "FUNCTION app.shout(text) needs a superuser",
            "ACL app.FUNCTION shout(text): FUNCTION app.shout(text) is not there",
            "COMMENT app.FUNCTION shout(text): FUNCTION app.shout(text) is not there",
            "PROCEDURAL LANGUAGE other: FUNCTION app.handler() is not there",
            "FUNCTION app.other() needs a superuser",
            "OPERATOR CLASS app.ordered: OPERATOR FAMILY app.ordered is not there",
            // The server takes this GRANT, and does nothing but warn.
            "no privileges were granted for \"pg_control_system\"",
        ],
    );
    let client = bed.cluster.connect("copy").await.unwrap();
    let guarded = "SELECT relrowsecurity AND relforcerowsecurity, (SELECT count(*) FROM app.seen), (SELECT count(*) FROM pg_policy WHERE polname = 'nobody')
                     FROM pg_class WHERE oid = 'app.guarded'::regclass";
    let row = client.query_one(guarded, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (true, 1, 1));
    if major >= 16 {
        assert_eq!(owner(&bed, "copy", "away").await, "master");
        told(&receipt, &["TABLE far.away cannot be given to distant"]);
    }
    let grants = "SELECT has_table_privilege('reporting', 'app.orders', 'SELECT')";
    let client = bed.cluster.connect("copy").await.unwrap();
    assert!(client.query_one(grants, &[]).await.unwrap().get::<_, bool>(0));

    // No owners, and privileges all the same: what pg_restore --no-owner does.
    let asked = Restore::NewDatabase { database: "unowned".into() };
    let clearance = cleared_with(&bed, asked, backup(&manifest), None, |options| options.no_owner = true).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(owner(&bed, "unowned", "clerks").await, "master");
    let client = bed.cluster.connect("unowned").await.unwrap();
    assert!(client.query_one(grants, &[]).await.unwrap().get::<_, bool>(0));

    let swap = Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_before".into() };
    let clearance = cleared(&bed, swap, backup(&manifest), Some(&manifest)).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(bed.contents("live").await, before);

    // Of a database that is somebody else's nothing is read in vain.
    bed.cluster.execute("postgres", "ALTER DATABASE live OWNER TO stranger").await.unwrap();
    let swap = Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_old".into() };
    let clearance = cleared(&bed, swap, backup(&manifest), Some(&manifest)).await;
    let reads = || bed.store().requests().iter().filter(|request| format!("{request:?}").contains(".dump")).count();
    let before_that = reads();
    let fault = by_master(&bed).await.carry_out(clearance).await.unwrap_err();
    assert_eq!((fault.code, reads()), ("restore-not-permitted", before_that), "{fault}");
    bed.cluster.execute("postgres", "ALTER DATABASE live OWNER TO master").await.unwrap();

    // What is not installed on the target is named.
    let key = &manifest.artifacts["dump"].key;
    let mut archive = bed.get(key).await;
    while let Some(at) = archive.windows(6).position(|window| window == b"citext") {
        archive[at + 5] = b'x';
    }
    let size_bytes = put(&bed, "imports/other.dump", archive).await.1;
    let source = Source::Import { name: "other.dump".parse().unwrap(), size_bytes, version_id: None };
    let asked = Restore::NewDatabase { database: "elsewhere".into() };
    let fault = engine(&bed).await.carry_out(cleared(&bed, asked, source, None).await).await.unwrap_err();
    assert_eq!(fault.code, "restore-extension-missing", "{fault}");
    assert!(fault.message.contains("EXTENSION citexx"), "{fault}");

    // The tables are its own now, so that it may put their rows back.
    bed.cluster.execute("live", "DELETE FROM app.orders; UPDATE office.clerks SET a = 5").await.unwrap();
    let tables = || vec!["app.orders".parse().unwrap(), "office.clerks".parse().unwrap()];
    let asked = Restore::TablesIntoSchema { database: "live".into(), schema: "restore_x".into(), tables: tables() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    bed.cluster.execute("live", "DROP SCHEMA restore_x CASCADE").await.unwrap();
    let asked = Restore::TablesInPlace { database: "live".into(), tables: tables() };
    let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(bed.contents("live").await, before);

    // With what is somebody else's it says so, and nothing has happened.
    bed.cluster.execute("live", "ALTER TABLE app.orders OWNER TO stranger").await.unwrap();
    let asked = Restore::TablesInPlace { database: "live".into(), tables: tables() };
    let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
    let fault = by_master(&bed).await.carry_out(clearance).await.unwrap_err();
    assert_eq!(fault.code, "restore-not-permitted", "{fault}");
    assert_eq!(bed.contents("live").await, before);

    // Fewer connections than workers: fewer streams.
    bed.cluster.execute("postgres", "ALTER ROLE master CONNECTION LIMIT 3").await.unwrap();
    let asked = Restore::NewDatabase { database: "narrow".into() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(bed.contents("narrow").await, before);
    bed.cluster.execute("postgres", "ALTER ROLE master CONNECTION LIMIT 0").await.unwrap();
    let asked = Restore::NewDatabase { database: "none".into() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    let fault = by_master(&bed).await.carry_out(clearance).await.unwrap_err();
    assert_eq!(fault.code, "database-too-many-connections", "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_rds_restores_13() {
    Box::pin(a_role_of_rds_restores(13)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_rds_restores_18() {
    Box::pin(a_role_of_rds_restores(18)).await;
}

/// On RDS `rdsadmin` is a superuser, whose sessions nobody else may end: they come and go.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_cannot_be_ended_are_waited_for_and_named() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    bed.cluster.execute("live", "CREATE TABLE small AS SELECT 1 AS a").await.unwrap();
    bed.cluster.execute("live", MASTER).await.unwrap();
    bed.cluster.execute("live", "CREATE ROLE rdsadmin LOGIN SUPERUSER PASSWORD 'r'").await.unwrap();
    let manifest = exported(&bed, "live").await;
    bed.cluster.execute("live", "DELETE FROM small").await.unwrap();
    let old = bed.contents("live").await;
    let visit = async || {
        let url = bed.cluster.url_as("rdsadmin", "r", "live");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let swap =
        || Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_before".into() };

    // Longer than there is time: nothing has happened.
    let staying = visit().await;
    let clearance = cleared(&bed, swap(), backup(&manifest), Some(&manifest)).await;
    let mut engine = by_master(&bed).await;
    engine.deadline = Instant::now() + Duration::from_secs(5);
    let fault = engine.carry_out(clearance).await.unwrap_err();
    assert_eq!(fault.code, "restore-database-busy", "{fault}");
    assert!(fault.message.contains("rdsadmin in live"), "{fault}");
    assert_eq!(bed.contents("live").await, old);
    assert!(!exists(&bed, "live_shadow").await && !exists(&bed, "live_before").await);

    // For a while: the names change once it has gone.
    let clearance = cleared(&bed, swap(), backup(&manifest), Some(&manifest)).await;
    let engine = by_master(&bed).await;
    let leaving = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        drop(staying);
    };
    let (swapped, ()) = tokio::join!(engine.carry_out(clearance), leaving);
    swapped.unwrap();
    assert_ne!(bed.contents("live").await, old);
    assert_eq!(bed.contents("live_before").await, old);
}
