//! Which tables are exported, by configuration and by request.

use std::path::Path;

use holdfast_local::postgres::Installation;
use serde_json::{Value, json};

use crate::bed::Bed;

async fn bed() -> Bed {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            r#"CREATE ROLE keeper; CREATE SCHEMA app AUTHORIZATION keeper; CREATE SCHEMA log; CREATE SCHEMA "Dotted";
               CREATE TABLE app.users (id serial PRIMARY KEY, name text); INSERT INTO app.users (name) VALUES ('a'), ('b');
               CREATE TABLE app."Users" (x int); INSERT INTO app."Users" VALUES (1);
               CREATE TABLE app."we""ird $x?[1]" (x int); INSERT INTO app."we""ird $x?[1]" VALUES (5);
               CREATE TABLE log.events_1 (x int); INSERT INTO log.events_1 VALUES (1), (2), (3);
               CREATE TABLE log.events_2 (x int); INSERT INTO log.events_2 VALUES (4);
               CREATE TABLE log.keep (x int); INSERT INTO log.keep VALUES (4);
               CREATE TABLE "Dotted"."a.b" (x int); INSERT INTO "Dotted"."a.b" VALUES (9);
               CREATE TABLE public.plain (x int); INSERT INTO public.plain VALUES (1);
               SELECT lo_from_bytea(0, 'x');"#,
        )
        .await
        .unwrap();
    bed
}

/// `schema.table=rows` of the manifest, sorted.
async fn tables(bed: &Bed, receipt: &Value) -> Vec<String> {
    let manifest = bed.manifest(receipt).await;
    let mut tables: Vec<_> =
        manifest.tables.iter().map(|table| format!("{}.{}={}", table.schema, table.name, table.rows)).collect();
    tables.sort();
    tables
}

async fn restored(bed: &Bed, file: &Path, database: &str) -> Vec<String> {
    bed.restore(&Installation::client(15).unwrap(), file, database, &[]).await;
    bed.contents(database).await.into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_configuration_and_by_request() {
    let bed = bed().await;

    // Chosen by the request: the schema comes along, with its owner, and nothing else.
    bed.register_export("source", &[]);
    let receipt = bed.export(json!({"tables": ["app.users"]})).await;
    assert_eq!(tables(&bed, &receipt).await, ["app.users=2"]);
    assert_eq!(restored(&bed, &bed.dump_file(&receipt).await, "one").await, ["app.users", "app.users_id_seq"]);
    let owner = bed.cluster.connect("one").await.unwrap();
    let owner = owner.query_one("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'app'", &[]).await;
    assert_eq!(owner.unwrap().get::<_, String>(0), "keeper");
    assert!(bed.manifest(&receipt).await.large_objects.is_none());
    assert_eq!(bed.manifest(&receipt).await.selection.include[0].to_string(), "app.users");

    // Names as they are stored: upper case, quotes, dollar signs, question marks, brackets, dots.
    let receipt = bed.export(json!({"tables": ["app.Users", "app.we\"ird $x?[1]", "Dotted.a.b"]})).await;
    assert_eq!(tables(&bed, &receipt).await, ["Dotted.a.b=1", "app.Users=1", "app.we\"ird $x?[1]=1"]);
    assert_eq!(restored(&bed, &bed.dump_file(&receipt).await, "odd").await.len(), 3);

    // Wildcards, left-out tables, and definitions without rows.
    let request =
        json!({"tables": ["log.*", "plain"], "exclude_tables": ["log.events_2"], "exclude_data": ["*.events_1"]});
    let receipt = bed.export(request).await;
    assert_eq!(tables(&bed, &receipt).await, ["log.keep=1", "public.plain=1"]);
    let names = restored(&bed, &bed.dump_file(&receipt).await, "wild").await;
    assert_eq!(names, ["log.events_1", "log.keep", "public.plain"]);
    assert_eq!(bed.contents("wild").await["log.events_1"], "0 rows 0");

    // What matches nothing: an error where it was asked for, a warning where it was to be left out.
    let (code, message) = bed.export_fails(json!({"tables": ["app.users", "app.USERS", "nosuch.*"]})).await;
    assert_eq!(code, "tables-not-found");
    assert!(message.contains("app.USERS, nosuch.*") && !message.contains("app.users,"), "{message}");
    let (code, _) = bed.export_fails(json!({"tables": ["app.users"], "exclude_tables": ["app.*"]})).await;
    assert_eq!(code, "tables-not-found", "a backup of nothing");
    let receipt = bed.export(json!({"exclude_tables": ["app.gone"], "exclude_data": ["*.tmp_*"]})).await;
    let warnings = receipt["warnings"].to_string();
    assert!(warnings.contains("app.gone") && warnings.contains("*.tmp_*"), "{warnings}");
    assert_eq!(receipt["tables"], 8);

    // Which of them counts as the deployment's backup: not one of fewer tables, whoever asked for it.
    let counted = async |payload: Value| {
        let outcome = bed.invoke(payload).await;
        assert!(!outcome.is_error(), "{:#}", outcome.payload);
        let log = outcome.log.join("\n");
        (
            log.contains("\"BackupSucceeded\":1.0"),
            log.contains("\"BackupOfFewerTables\":1.0"),
            log.contains("BackupBytes"),
        )
    };
    assert_eq!(counted(json!({"tables": ["app.users"]})).await, (false, true, false));
    assert_eq!(counted(json!({"exclude_data": ["log.*"]})).await, (false, true, false));
    bed.register_export("source", &[("INCLUDE_TABLES", "app.users, log.*")]);
    assert_eq!(counted(json!({})).await, (true, false, true));
    assert_eq!(counted(json!({"tables": ["app.users"]})).await, (false, true, false));

    // Configured; a request adds to what is left out.
    let settings = [("EXCLUDE_TABLES", "log.events_*, app.Users"), ("EXCLUDE_TABLE_DATA", "app.users")];
    bed.register_export("source", &settings);
    let receipt = bed.export(json!({})).await;
    let expected = ["Dotted.a.b=1", "app.we\"ird $x?[1]=1", "log.keep=1", "public.plain=1"];
    assert_eq!(tables(&bed, &receipt).await, expected);
    let receipt = bed.export(json!({"exclude_tables": ["Dotted.*", "plain"]})).await;
    assert_eq!(tables(&bed, &receipt).await, ["app.we\"ird $x?[1]=1", "log.keep=1"]);
    let names = restored(&bed, &bed.dump_file(&receipt).await, "configured").await;
    assert_eq!(
        names[..3],
        ["app.\"we\"\"ird $x?[1]\"", "app.users", "app.users_id_seq"].map(str::to_owned),
        "{names:?}"
    );
}
