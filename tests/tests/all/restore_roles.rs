//! Restores by a role that is no superuser, as on RDS: it may create databases and roles, and end sessions.

use holdfast_shared::plan::clearance::Restore;
use holdfast_shared::postgres::connect::Target;
use restore_trigger::engine::{Engine, Receipt};

use crate::bed::Bed;
use crate::restore::{backup, cleared, engine, exported};
use crate::schema;

const MASTER: &str = "
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
ALTER TABLE office.clerks OWNER TO clerk; ALTER TABLE app.strangers OWNER TO stranger";

async fn by_master(bed: &Bed) -> Engine {
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
        ],
    );
    let grants = "SELECT has_table_privilege('reporting', 'app.orders', 'SELECT')";
    let client = bed.cluster.connect("copy").await.unwrap();
    assert!(client.query_one(grants, &[]).await.unwrap().get::<_, bool>(0));

    // No owners, and privileges all the same: what pg_restore --no-owner does.
    let asked = Restore::NewDatabase { database: "unowned".into() };
    let clearance =
        crate::restore::cleared_with(&bed, asked, backup(&manifest), None, |options| options.no_owner = true).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(owner(&bed, "unowned", "clerks").await, "master");
    let client = bed.cluster.connect("unowned").await.unwrap();
    assert!(client.query_one(grants, &[]).await.unwrap().get::<_, bool>(0));

    let swap = Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_before".into() };
    let clearance = cleared(&bed, swap, backup(&manifest), Some(&manifest)).await;
    by_master(&bed).await.carry_out(clearance).await.unwrap();
    assert_eq!(bed.contents("live").await, before);

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
