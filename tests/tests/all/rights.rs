//! What a role may not read is told before any data is read; what it may read is exported, also from a standby.

use std::collections::BTreeMap;

use holdfast_local::postgres::{Cluster, ClusterOptions, Installation};
use serde_json::json;

use crate::bed::{Bed, contents, extension, run};
use crate::schema;

const PASSWORD: &str = "exporter";

/// The bed's export as another role than the superuser.
fn register_as(bed: &Bed, role: &str, database: &str, settings: &[(&str, &str)]) {
    let url = bed.cluster.url_as(role, PASSWORD, database);
    let settings = [&[("DATABASE_URL", url.as_str())], settings].concat();
    bed.register_export(database, &settings);
}

/// Fails, before anything is uploaded. Code and message.
async fn refused(bed: &Bed) -> (String, String) {
    bed.store().clear_requests();
    let (code, message) = bed.export_fails(json!({})).await;
    let parts = bed.store().requests().into_iter().filter(|request| request.operation == "UploadPart").count();
    assert_eq!((parts, bed.manifests().len()), (0, 0), "{message}");
    assert!(bed.store().pending_uploads(crate::bed::BUCKET).is_empty());
    (code, message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_pg_read_all_data() {
    let bed = Bed::start(15).await;
    schema::create(&bed.cluster, "source", 300).await;
    bed.cluster
        .execute("source", "CREATE ROLE exporter LOGIN PASSWORD 'exporter'; GRANT pg_read_all_data TO exporter")
        .await
        .unwrap();
    register_as(&bed, "exporter", "source", &[]);
    let (code, message) = refused(&bed).await;
    assert_eq!(code, "table-not-readable");
    assert!(message.contains("app.secrets") && message.contains("ALTER ROLE \"exporter\" BYPASSRLS"), "{message}");
    assert!(!message.contains("app.orders"), "{message}");

    bed.cluster.execute("source", "ALTER ROLE exporter BYPASSRLS").await.unwrap();
    let (code, message) = refused(&bed).await;
    assert_eq!(code, "large-object-not-readable");
    assert!(message.contains("GRANT SELECT ON LARGE OBJECT"), "{message}");

    let grant = "DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP
        EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO exporter', o); END LOOP; END $$";
    bed.cluster.execute("source", grant).await.unwrap();
    let receipt = bed.export(json!({})).await;
    let client = Installation::client(15).unwrap();
    bed.restore(&client, &bed.dump_file(&receipt).await, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "source"));
}

/// The statements of the hint: what an operator would run.
fn remedies(message: &str) -> Vec<String> {
    let hint = message.rsplit_once(" (").unwrap().1.trim_end_matches(')');
    let sentences = hint.split("; ").flat_map(|sentence| sentence.split(", or make "));
    sentences.filter(|sentence| sentence.starts_with("GRANT")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_grants_as_the_errors_name_them() {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            r#"CREATE ROLE "ex porter""" LOGIN PASSWORD 'exporter';
               CREATE SCHEMA "we""ird"; CREATE TABLE "we""ird"."Tab""le" (id serial, x text);
               INSERT INTO "we""ird"."Tab""le" (x) VALUES ('a'), ('b');
               CREATE SEQUENCE public.loose; SELECT nextval('public.loose');
               CREATE TABLE public.plain (x int); INSERT INTO public.plain VALUES (1);
               CREATE TABLE public.parts (x int) PARTITION BY LIST (x); CREATE TABLE public.part_1 PARTITION OF public.parts FOR VALUES IN (1);
               INSERT INTO public.parts VALUES (1);
               CREATE VIEW public.hidden AS SELECT * FROM public.plain;
               SELECT lo_from_bytea(0, 'one'), lo_from_bytea(0, 'two');"#,
        )
        .await
        .unwrap();
    register_as(&bed, "ex porter\"", "source", &[]);
    let mut seen = Vec::new();
    let receipt = loop {
        let outcome = bed.invoke(json!({})).await;
        if !outcome.is_error() {
            break outcome.payload;
        }
        let message = outcome.payload["errorMessage"].as_str().unwrap().to_owned();
        let grants = remedies(&message);
        assert!(!grants.is_empty() && seen.len() < 12, "{message}");
        for grant in grants {
            assert!(!seen.contains(&grant), "{grant} did not help: {message}");
            bed.cluster.execute("source", &grant).await.unwrap_or_else(|error| panic!("{grant}: {error}"));
            seen.push(grant);
        }
    };
    for expected in [
        r#"GRANT USAGE ON SCHEMA "we""ird" TO "ex porter""""#,
        r#"GRANT SELECT ON TABLE "we""ird"."Tab""le" TO "ex porter""""#,
        r#"GRANT SELECT ON SEQUENCE "we""ird"."Tab""le_id_seq" TO "ex porter""""#,
        r#"GRANT SELECT ON SEQUENCE "public"."loose" TO "ex porter""""#,
        r#"GRANT SELECT ON TABLE "public"."part_1" TO "ex porter""""#,
    ] {
        assert!(seen.iter().any(|grant| grant == expected), "{expected} in {seen:#?}");
    }
    assert_eq!(seen.iter().filter(|grant| grant.contains("LARGE OBJECT")).count(), 2, "{seen:#?}");
    bed.restore(&Installation::client(15).unwrap(), &bed.dump_file(&receipt).await, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_table_needs_the_right_to_its_own_sequence() {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            "CREATE ROLE exporter LOGIN PASSWORD 'exporter'; CREATE TABLE t (id serial); CREATE TABLE other (x int); GRANT SELECT ON t TO exporter",
        )
        .await
        .unwrap();
    register_as(&bed, "exporter", "source", &[("INCLUDE_TABLES", "public.t")]);
    let (code, message) = refused(&bed).await;
    assert_eq!(code, "table-not-readable", "{message}");
    assert!(message.contains("t_id_seq"), "{message}");
    bed.cluster.execute("source", "GRANT SELECT ON SEQUENCE t_id_seq TO exporter").await.unwrap();
    assert_eq!(bed.export(json!({})).await["tables"], 1);
}

/// An extension's configuration table is exported by its condition; its other members are none of our business.
#[tokio::test(flavor = "multi_thread")]
async fn extension_members() {
    let directory = extension(
        "confy",
        "CREATE TABLE confy_settings (k text PRIMARY KEY, v text, builtin bool DEFAULT false);
         INSERT INTO confy_settings VALUES ('a', 'built in', true);
         CREATE TABLE confy_all (x int); CREATE TABLE confy_private (x int); INSERT INTO confy_private VALUES (1);
         CREATE SEQUENCE confy_seq;
         SELECT pg_catalog.pg_extension_config_dump('confy_settings', 'WHERE NOT builtin');
         SELECT pg_catalog.pg_extension_config_dump('confy_all', '');
         SELECT pg_catalog.pg_extension_config_dump('confy_seq', '');",
    );
    let path = format!("{}:$system", directory.path().display());
    let cluster =
        Cluster::start(ClusterOptions::major(18).setting("extension_control_path", path.as_str())).await.unwrap();
    let bed = Bed::with_cluster(cluster).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster
        .execute(
            "source",
            "CREATE EXTENSION confy; INSERT INTO confy_settings VALUES ('b', 'our own'), ('c', E'tab\\there');
             INSERT INTO confy_all VALUES (1), (2); SELECT setval('confy_seq', 42);
             CREATE ROLE exporter LOGIN PASSWORD 'exporter'; GRANT SELECT ON confy_settings, confy_all, confy_seq TO exporter;
             CREATE TABLE mine (x int); INSERT INTO mine VALUES (1); GRANT SELECT ON mine TO exporter;",
        )
        .await
        .unwrap();
    register_as(&bed, "exporter", "source", &[("COMPRESSION", "gzip")]);
    let receipt = bed.export(json!({})).await;
    let manifest = bed.manifest(&receipt).await;
    let rows: BTreeMap<_, _> = manifest.tables.iter().map(|table| (table.name.as_str(), table.rows)).collect();
    assert_eq!(rows, BTreeMap::from([("confy_all", 2), ("confy_settings", 2), ("mine", 1)]));
    let condition = |name: &str| manifest.tables.iter().find(|table| table.name == name).unwrap().condition.clone();
    assert_eq!((condition("confy_settings"), condition("mine")), (Some("WHERE NOT builtin".to_owned()), None));
    bed.restore(&Installation::client(18).unwrap(), &bed.dump_file(&receipt).await, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_hot_standby() {
    let primary = Cluster::start(ClusterOptions::major(16)).await.unwrap();
    schema::create(&primary, "source", 500).await;
    let standby = primary.standby().await.unwrap();
    primary.execute("source", "INSERT INTO app.parent VALUES (77)").await.unwrap();
    standby.catch_up_with(&primary).await.unwrap();
    let bed = Bed::with_cluster(standby).await;
    bed.register_export("source", &[("COMPRESSION", "gzip")]);
    let receipt = bed.export(json!({})).await;
    let manifest = bed.manifest(&receipt).await;
    assert_eq!(manifest.server.role, "standby");
    assert!(manifest.tables.iter().all(|table| table.name != "scratch"), "no rows of an unlogged table");

    let client = Installation::client(16).unwrap();
    primary.create_database("restored").await.unwrap();
    let url = primary.url("restored");
    run(client
        .command("pg_restore")
        .args(["--exit-on-error", "-j", "2", "--dbname", &url])
        .arg(bed.dump_file(&receipt).await));
    let mut expected = contents(&primary.connect("source").await.unwrap()).await;
    expected.insert("app.scratch".to_owned(), "0 rows 0".to_owned());
    assert_eq!(contents(&primary.connect("restored").await.unwrap()).await, expected);
}
