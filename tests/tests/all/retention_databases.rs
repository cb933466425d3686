//! Retention on the server: databases that swaps have put aside, and rows that table loads have.

use serde_json::{Value, json};

use crate::bed::EXPORT;
use crate::guarded::{Guarded, PASSKEY};
use crate::retention_rig::{KEY, RETENTION, rights, spec};

const ROLE: &str = "keeper";

/// A bed whose restores and retention work on one server.
struct Server {
    guarded: Guarded,
}

impl Server {
    async fn start() -> Self {
        let guarded = Guarded::with(&[("EXPORT_FUNCTION_NAME", EXPORT)]).await;
        guarded.bed.register_export("shop", &[]);
        guarded.bed.store().add_key(KEY.0, KEY.1, Some(rights()));
        let create = format!("CREATE ROLE {ROLE} LOGIN PASSWORD 'keeper' CREATEDB");
        guarded.bed.cluster.execute("postgres", &create).await.unwrap();
        let server = Self { guarded };
        server.register(&[]);
        server
    }

    fn register(&self, settings: &[(&str, &str)]) {
        let url = self.guarded.bed.cluster.url_as(ROLE, "keeper", "shop");
        let identifier = self.guarded.system_identifier.clone();
        let usual = [
            ("ENVIRONMENT", "test"),
            ("DATABASE_URL", url.as_str()),
            ("TARGET_SYSTEM_IDENTIFIER", identifier.as_str()),
        ];
        self.guarded.bed.lambda.register(spec(&self.guarded.bed.s3, &[&usual, settings].concat()));
    }

    async fn retain(&self, payload: Value) -> Value {
        let outcome = self.guarded.bed.lambda.invoke(RETENTION, payload).await.unwrap();
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    async fn fails(&self) -> (String, String) {
        let outcome = self.guarded.bed.lambda.invoke(RETENTION, json!({})).await.unwrap();
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        let text = |field: &str| outcome.payload[field].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }

    async fn sql(&self, database: &str, sql: &str) {
        self.guarded.bed.cluster.execute(database, sql).await.unwrap();
    }

    async fn put_aside(&self, name: &str, owner: &str, note: &Value) {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\" OWNER {owner}")).await;
        self.sql("postgres", &format!("COMMENT ON DATABASE \"{name}\" IS '{note}'")).await;
    }

    async fn has(&self, name: &str) -> bool {
        self.guarded.databases().await.iter().any(|database| database == name)
    }
}

fn note(what: &str, keep_until: &Value) -> Value {
    json!({"holdfast": what, "by_backup": "20250601-020000", "at": "2025-06-01T03:00:00Z", "keep_until": keep_until})
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_put_aside_are_dropped_when_their_time_has_passed_and_nobody_is_in_them() {
    let server = Server::start().await;
    // One as a swap leaves it.
    let receipt = server.guarded.bed.export(json!({"purpose": "test"})).await;
    let id = receipt["id"].as_str().unwrap();
    let swap = json!({"mode": "swap", "backup": id, "passkey": PASSKEY, "keep_previous_days": 1});
    let swapped = server.guarded.ask(swap).await;
    assert!(!swapped.is_error(), "{:#}", swapped.payload);
    let aside = format!("shop_before_{id}");
    assert!(server.has(&aside).await);
    server.sql("postgres", &format!("ALTER DATABASE \"{aside}\" OWNER TO {ROLE}")).await;
    let plan = server.retain(json!({})).await["plan"]["database"].clone();
    assert_eq!((&plan["keep"][0]["name"], &plan["drop"]), (&json!(aside), &json!([])), "{plan:#}");
    assert!(plan["keep"][0]["reason"].as_str().unwrap().starts_with("it is kept until"), "{plan:#}");

    let past = json!("2025-06-08T03:00:00Z");
    let mut over: Value = {
        let client = server.guarded.bed.cluster.connect("postgres").await.unwrap();
        let sql = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
        let comment: String = client.query_one(sql, &[&aside]).await.unwrap().get(0);
        serde_json::from_str(&comment).unwrap()
    };
    over["keep_until"] = over["at"].clone();
    server.sql("postgres", &format!("COMMENT ON DATABASE \"{aside}\" IS '{over}'")).await;
    for (name, owner, note) in [
        ("crm_undone_20250601-020000", ROLE, note("undone", &past)),
        ("crm_before_20250601-020000", ROLE, note("replaced", &past)),
        ("crm_before_20250602-020000", ROLE, note("replaced", &Value::Null)),
        ("crm_before_20250603-020000", "postgres", note("replaced", &past)),
        ("crm_before_20250604-020000", ROLE, json!("a copy for Ann")),
        ("crm", ROLE, note("replaced", &past)),
    ] {
        server.put_aside(name, owner, &note).await;
    }
    let busy = server.guarded.bed.cluster.connect("crm_before_20250601-020000").await.unwrap();

    let dry = server.retain(json!({"dry_run": true})).await;
    let drop: Vec<&str> =
        dry["plan"]["database"]["drop"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(drop, ["crm_undone_20250601-020000", aside.as_str()]);
    assert!(server.has(&aside).await, "a dry run drops nothing");
    let real = server.retain(json!({})).await;
    assert_eq!(real["plan"], dry["plan"]);
    assert_eq!(real["done"]["databases_dropped"], json!(drop));
    let kept = real["plan"]["database"]["keep"].as_array().unwrap();
    let reasons: Vec<&str> = kept.iter().map(|kept| kept["reason"].as_str().unwrap()).collect();
    assert_eq!(
        reasons,
        [
            "its time has passed, and 1 sessions are in it",
            "it is kept until it is dropped by hand",
            "it belongs to another role",
            "it has no note of a restore",
        ]
    );
    for name in
        ["crm", "crm_before_20250601-020000", "crm_before_20250603-020000", "crm_before_20250604-020000", "shop"]
    {
        assert!(server.has(name).await, "{name}");
    }
    assert!(!server.has(&aside).await && !server.has("crm_undone_20250601-020000").await);
    assert!(busy.query("SELECT 1", &[]).await.is_ok(), "no session was ended");
    drop_session(busy).await;
    assert_eq!(server.retain(json!({})).await["done"]["databases_dropped"], json!(["crm_before_20250601-020000"]));
    assert_eq!(server.retain(json!({})).await["done"]["databases_dropped"], json!([]));
}

async fn drop_session(client: tokio_postgres::Client) {
    drop(client);
    // The server notices it a moment later.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_past_their_age_are_deleted_and_another_server_is_left_alone() {
    let server = Server::start().await;
    let tables = format!(
        "CREATE TABLE orders_backup (id int, backup_timestamp timestamptz NOT NULL);
         INSERT INTO orders_backup SELECT g, now() - interval '40 days' FROM generate_series(1, 25000) g;
         INSERT INTO orders_backup SELECT g, now() - interval '20 days' FROM generate_series(1, 10) g;
         CREATE TABLE local_backup (id int, backup_timestamp timestamp);
         INSERT INTO local_backup VALUES (1, (now() AT TIME ZONE 'UTC') - interval '31 days'), (2, now() AT TIME ZONE 'UTC'), (3, NULL);
         CREATE TABLE plain_backup (id int, made timestamptz); INSERT INTO plain_backup VALUES (1, '2020-01-01');
         CREATE TABLE audit (id int, backup_timestamp timestamptz); INSERT INTO audit VALUES (1, '2020-01-01');
         CREATE TABLE locked_backup (id int, backup_timestamp timestamptz); INSERT INTO locked_backup VALUES (1, '2020-01-01');
         GRANT SELECT, DELETE ON orders_backup, local_backup, plain_backup, audit TO {ROLE};
         GRANT SELECT ON locked_backup TO {ROLE}"
    );
    server.sql("shop", &tables).await;
    let count = async |table: &str| -> i64 {
        let client = server.guarded.bed.cluster.connect("shop").await.unwrap();
        client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
    };
    let untouched = server.retain(json!({})).await;
    assert_eq!((&untouched["plan"]["database"]["rows"], count("orders_backup").await), (&json!([]), 25_010));

    // Another server than the configured one, or none that is: S3 is swept all the same.
    let days = ("BACKUP_ROWS_KEEP_DAYS", "30");
    server.register(&[days, ("TARGET_SYSTEM_IDENTIFIER", "7")]);
    let (code, message) = server.fails().await;
    assert!(code == "retention-incomplete" && message.contains("retention-wrong-server"), "{code}: {message}");
    server.register(&[days, ("TARGET_SYSTEM_IDENTIFIER", "")]);
    let skipped = server.retain(json!({})).await["plan"]["database"]["skipped"].clone();
    assert!(skipped.as_str().unwrap().contains(&server.guarded.system_identifier), "{skipped}");
    assert_eq!(count("orders_backup").await, 25_010);

    server.register(&[days]);
    let dry = server.retain(json!({"dry_run": true})).await;
    let rows = json!([{"table": "public.local_backup", "rows": 1}, {"table": "public.locked_backup", "rows": 1}, {"table": "public.orders_backup", "rows": 25_000}]);
    assert_eq!((&dry["plan"]["database"]["rows"], count("orders_backup").await), (&rows, 25_010));
    let (code, message) = server.fails().await;
    assert_eq!(code, "retention-incomplete");
    assert!(message.starts_with("1 failed") && message.contains("rows of public.locked_backup"), "{message}");
    assert_eq!((count("orders_backup").await, count("local_backup").await), (10, 2), "the others are done");
    assert_eq!((count("plain_backup").await, count("audit").await, count("locked_backup").await), (1, 1, 1));
    server.sql("shop", "DROP TABLE locked_backup").await;
    assert_eq!(server.retain(json!({})).await["done"]["rows_deleted"], 0);
}
