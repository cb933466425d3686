//! The documents that state a public contract, held against the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use holdfast_shared::config::FUNCTIONS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            found.push(code);
        }
    }
}

/// Kebab-case literals that are an argument or a match arm's value: where error codes stand.
fn codes_in(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices('"').filter_map(|(at, _)| {
        let before = source[..at].trim_end().chars().next_back()?;
        let literal = source[at + 1..].split('"').next()?;
        let kebab = literal.contains('-')
            && literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && literal.starts_with(|c: char| c.is_ascii_lowercase())
            && !literal.ends_with('-');
        (matches!(before, '(' | '>') && kebab).then_some(literal)
    })
}

/// A listing's first columns are when an object was written, and a backup's tombstone is written when it expires.
#[test]
fn the_newest_backup_is_found_as_the_documents_say() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("listing"),
        "2025-06-23 04:00:09      17311 production/postgres-exports/metadata/2025-05-23/20250523-020000.json\n\
         2025-06-21 02:01:00      17310 production/postgres-exports/metadata/2025-06-21/20250621-020000.json\n\
         2025-06-22 02:01:00       9310 production/postgres-exports/metadata/2025-06-22/20250622-020000.json\n",
    )
    .unwrap();
    for name in ["README.md", "docs/format.md", "docs/runbook.md"] {
        let text = document(name);
        let (_, rest) = text.split_once("aws s3 ls s3://BUCKET/postgres-exports/metadata/ --recursive |").unwrap();
        let pipe = rest.split(['\n', '`', '#']).next().unwrap();
        let shell = std::process::Command::new("sh")
            .args(["-c", &format!("cat listing | {pipe}")])
            .current_dir(directory.path())
            .output()
            .unwrap();
        let told = String::from_utf8(shell.stdout).unwrap();
        assert_eq!(told, "production/postgres-exports/metadata/2025-06-22/20250622-020000.json\n", "{name}");
    }
}

#[test]
fn every_error_code_is_documented_and_every_documented_code_exists() {
    const NOT_CODES: [&str; 2] = ["rds-db", "verify-full"];
    let mut files = Vec::new();
    for directory in ["shared/src", "functions"] {
        sources(&root().join(directory), &mut files);
    }
    let used: BTreeSet<&str> = files
        .iter()
        .flat_map(|source| codes_in(source))
        .filter(|code| !NOT_CODES.contains(code) && !FUNCTIONS.iter().any(|(function, _)| function == code))
        .collect();
    let errors = document("docs/errors.md");
    let rows = errors.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<&str> =
        rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    let without_dash = ["configuration", "internal"];
    let missing: Vec<_> = used.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&used).filter(|code| !without_dash.contains(code)).collect();
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
    assert!(gone.is_empty(), "in docs/errors.md, and nowhere in the code: {gone:?}");
}

#[test]
fn every_setting_is_documented_as_it_is_declared() {
    let configuration = document("docs/configuration.md");
    for (function, lists) in FUNCTIONS {
        for list in *lists {
            let mut table = String::from("| variable | default | meaning |\n| --- | --- | --- |\n");
            for setting in *list {
                let default = if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
                table.push_str(&format!("| `{}` | {default} | {} |\n", setting.name, setting.meaning));
            }
            assert!(configuration.contains(&table), "docs/configuration.md has to hold {function}'s table:\n{table}");
        }
    }
}

#[test]
fn nothing_private_is_in_the_repository() {
    // Compared in halves, so that this file does not hold them.
    let forbidden = [["/wo", "rk/main"].concat(), ["/ro", "ot/.py"].concat(), ["/ro", "ot/.cargo"].concat()];
    let listed = std::process::Command::new("git").args(["ls-files"]).current_dir(root()).output().unwrap();
    assert!(listed.status.success());
    for name in String::from_utf8(listed.stdout).unwrap().lines() {
        let Ok(text) = std::fs::read_to_string(root().join(name)) else { continue };
        for word in &forbidden {
            assert!(!text.contains(word.as_str()), "{name} holds {word}");
        }
    }
}
