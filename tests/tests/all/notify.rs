//! Who is told: failures always, successes where it is asked for. The topic is a stand-in that keeps what is published.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use holdfast_local::postgres::{Cluster, ClusterOptions};
use serde_json::json;

use crate::bed::Bed;

pub type Published = Arc<Mutex<Vec<String>>>;

/// Answers `Publish` as SNS does, and remembers the form it was sent.
pub async fn topic() -> (String, Published) {
    async fn publish(State(published): State<Published>, body: String) -> ([(&'static str, &'static str); 1], String) {
        published.lock().unwrap().push(body);
        let answer = "<PublishResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><PublishResult>\
                      <MessageId>1</MessageId></PublishResult></PublishResponse>";
        ([("content-type", "text/xml")], answer.to_owned())
    }
    let published = Published::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/", post(publish)).with_state(Arc::clone(&published));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, published)
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_successes_where_asked_for() {
    let options = ClusterOptions { password: "hunter2".to_owned(), ..ClusterOptions::major(15) };
    let bed = Bed::with_cluster(Cluster::start(options).await.unwrap()).await;
    bed.cluster.create_database("told").await.unwrap();
    let (endpoint, published) = topic().await;
    let topic = [
        ("NOTIFY_TOPIC_ARN", "arn:aws:sns:us-east-1:123456789012:backups"),
        ("AWS_ENDPOINT_URL_SNS", &endpoint),
        ("AWS_REGION", "us-east-1"),
    ];
    let told = || std::mem::take(&mut *published.lock().unwrap());

    bed.register_export("told", &topic);
    bed.export(json!({})).await;
    assert_eq!(told(), Vec::<String>::new(), "success is not told unless asked for");

    bed.register_export("told", &[&topic[..], &[("NOTIFY_ON_SUCCESS", "true")]].concat());
    let receipt = bed.export(json!({})).await;
    let success = told();
    assert_eq!(success.len(), 1);
    assert!(success[0].contains(receipt["id"].as_str().unwrap()), "{success:?}");

    bed.register_export("absent", &topic);
    let (code, _) = bed.export_fails(json!({})).await;
    let failure = told();
    assert_eq!(failure.len(), 1);
    assert!(failure[0].contains(&code) && failure[0].contains("Subject="), "{failure:?}");
    assert!(!failure[0].contains(bed.cluster.password()), "no password is published");

    // A topic that cannot be reached changes nothing about a backup.
    bed.register_export(
        "told",
        &[
            &topic[..2],
            &[
                ("NOTIFY_ON_SUCCESS", "true"),
                ("AWS_ENDPOINT_URL_SNS", "http://127.0.0.1:9"),
                ("AWS_REGION", "us-east-1"),
            ],
        ]
        .concat(),
    );
    let receipt = bed.export(json!({})).await;
    assert_eq!(receipt["status"], "complete");
}
