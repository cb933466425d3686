//! The demo's second half: a table is emptied by mistake, and `restore-trigger` brings the database back.

use holdfast_local::postgres::Cluster;
use holdfast_local::stack::{DATABASE, Stack};
use serde_json::json;

use super::{DemoError, Progress, invoke};

const LARGEST: &str = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                        WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                        ORDER BY pg_relation_size(c.oid) DESC LIMIT 1";

/// Empties the largest table and what refers to it.
pub async fn strike(cluster: &Cluster, progress: Progress) -> Result<(), DemoError> {
    let client = cluster.connect(DATABASE).await?;
    let table: String = client.query_one(LARGEST, &[]).await?.get(0);
    let sql = format!("TRUNCATE {table} CASCADE");
    progress.say(format!("a mistake: {sql}"));
    client.batch_execute(&sql).await?;
    Ok(())
}

/// Restores a backup beside the database, proves it, and swaps the two.
pub async fn swap_back(stack: &Stack, id: &str, progress: Progress) -> Result<(), DemoError> {
    let asked = json!({"mode": "swap", "backup": id, "take_safety_backup": true});
    progress.say(format!("aws lambda invoke --function-name restore-trigger --payload '{asked}', with the passkey"));
    let mut request = asked;
    request["passkey"] = json!(stack.description.passkey);
    let answer = invoke::invoke(&stack.description.lambda, "restore-trigger", &request.to_string()).await?;
    if answer.failed {
        for line in stack.lambda.logs("restore-trigger") {
            eprintln!("{line}");
        }
        return Err(DemoError::SwapFailed { payload: answer.payload });
    }
    let receipt = answer.payload;
    progress.say(format!(
        "restored {} rows, proved by {}; the damaged database is kept as {}",
        receipt["rows"],
        receipt["proved_by"].as_str().unwrap_or("?"),
        receipt["previous"].as_str().unwrap_or("?")
    ));
    Ok(())
}
