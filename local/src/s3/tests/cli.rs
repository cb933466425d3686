//! The unmodified AWS CLI as the judge.

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use super::{Bench, MIB, bench, body};

/// None where the CLI is not installed.
async fn aws(bench: &Bench, directory: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("aws");
    command.args(["--endpoint-url", &bench.server.endpoint(), "--region", "us-east-1"]).args(arguments);
    command.current_dir(directory).env("AWS_ACCESS_KEY_ID", "holdfast").env("AWS_SECRET_ACCESS_KEY", "holdfast-secret");
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_PAGER", "");
    match command.output().await {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_cli_copies_syncs_lists_and_removes() {
    let bench = bench().await;
    let directory = tempfile::tempdir().unwrap();
    let content = body(9 * MIB, 5);
    std::fs::create_dir(directory.path().join("tree")).unwrap();
    std::fs::write(directory.path().join("tree/big.bin"), &content).unwrap();
    std::fs::write(directory.path().join("tree/a b+ü.txt"), b"small").unwrap();
    let run = async |arguments: &[&str]| {
        let output = aws(&bench, directory.path(), arguments).await?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // 9 MiB is over the CLI's multipart threshold.
    if run(&["s3", "sync", "tree", "s3://plain/dumps/"]).await.is_none() {
        return;
    }
    assert!(bench.operations().contains(&"CompleteMultipartUpload".to_owned()));
    let listed = run(&["s3", "ls", "s3://plain/dumps/"]).await.unwrap();
    assert!(listed.contains("a b+ü.txt") && listed.contains("9437184 big.bin"), "{listed}");
    run(&["s3", "cp", "s3://plain/dumps/big.bin", "back.bin"]).await;
    assert!(std::fs::read(directory.path().join("back.bin")).unwrap() == content);
    run(&["s3", "rm", "--recursive", "s3://plain/dumps/"]).await;
    assert!(bench.server.store().objects("plain").is_empty());
    let missing = aws(&bench, directory.path(), &["s3api", "get-object", "--bucket", "plain", "--key", "x", "y"]).await;
    assert!(String::from_utf8_lossy(&missing.unwrap().stderr).contains("(NoSuchKey)"));
}
