//! The sample database of the demo and of `local up`.

use tokio_postgres::Client;

/// Tables of every kind, about 200,000 rows; the file says what is in it.
const SQL: &str = include_str!("../demo/sample.sql");
const STEP: &str = "-- step: ";

/// Fills an empty database, calling `before` with the title of each step.
pub async fn fill(client: &Client, mut before: impl FnMut(&str)) -> Result<(), tokio_postgres::Error> {
    // What stands before the first step is a comment.
    for step in SQL.split(STEP).skip(1) {
        let (title, statements) = step.split_once('\n').unwrap_or((step, ""));
        before(title);
        client.batch_execute(statements).await?;
    }
    Ok(())
}
