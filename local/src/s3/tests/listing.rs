//! Listings: prefixes, delimiters, pages and versions.

use futures::StreamExt;

use super::{Bench, bench};

async fn filled() -> Bench {
    let bench = bench().await;
    for key in ["a/1", "a/2", "b", "c/1/x", "c/2", "d e+ü", "z"] {
        bench.put("plain", key, b"x").await;
    }
    bench
}

#[tokio::test]
async fn keys_are_listed_in_pages_without_gap_or_repeat() {
    let bench = filled().await;
    for (prefix, delimiter, size) in
        [("", None, 2), ("", Some("/"), 1), ("", Some("/"), 2), ("c/", Some("/"), 1), ("a", None, 1000)]
    {
        let list =
            bench.client.list_objects_v2().bucket("plain").prefix(prefix).set_delimiter(delimiter.map(Into::into));
        let whole = list.clone().send().await.unwrap();
        let mut expected: Vec<String> = whole.contents().iter().filter_map(|o| o.key().map(Into::into)).collect();
        expected.extend(whole.common_prefixes().iter().filter_map(|p| p.prefix().map(Into::into)));
        let mut pages = list.max_keys(size).into_paginator().send();
        let mut seen = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.unwrap();
            assert!(page.key_count().unwrap() <= size);
            seen.extend(page.contents().iter().filter_map(|o| o.key().map(str::to_owned)));
            seen.extend(page.common_prefixes().iter().filter_map(|p| p.prefix().map(str::to_owned)));
        }
        expected.sort();
        seen.sort();
        assert_eq!(seen, expected, "{prefix} {delimiter:?} {size}");
    }
    let top = bench.client.list_objects_v2().bucket("plain").delimiter("/").send().await.unwrap();
    let prefixes: Vec<&str> = top.common_prefixes().iter().filter_map(|p| p.prefix()).collect();
    assert_eq!(prefixes, ["a/", "c/"]);
    let keys: Vec<&str> = top.contents().iter().filter_map(|o| o.key()).collect();
    assert_eq!(keys, ["b", "d e+ü", "z"]);
}

#[tokio::test]
async fn a_listing_starts_after_a_key() {
    let bench = filled().await;
    let after = bench.client.list_objects_v2().bucket("plain").start_after("c/1/x").send().await.unwrap();
    assert_eq!(after.contents().iter().filter_map(|o| o.key()).collect::<Vec<_>>(), ["c/2", "d e+ü", "z"]);
    let old = bench.client.list_objects().bucket("plain").marker("b").delimiter("/").max_keys(1).send().await.unwrap();
    assert_eq!(old.common_prefixes()[0].prefix(), Some("c/"));
    assert_eq!(old.next_marker(), Some("c/"));
    let old = bench.client.list_objects().bucket("plain").marker("c/").delimiter("/").send().await.unwrap();
    assert_eq!(old.contents()[0].key(), Some("d e+ü"));
}

#[tokio::test]
async fn a_page_holds_a_thousand_keys() {
    let bench = bench().await;
    let puts = (0..1001).map(|i| {
        let put = bench.client.put_object().bucket("plain").key(format!("{i:04}"));
        put.body(vec![1].into()).send()
    });
    let all: Vec<_> = futures::stream::iter(puts).buffer_unordered(16).collect().await;
    assert!(all.iter().all(Result::is_ok));
    let page = bench.client.list_objects_v2().bucket("plain").max_keys(5000).send().await.unwrap();
    assert_eq!((page.contents().len(), page.is_truncated()), (1000, Some(true)));
}

#[tokio::test]
async fn versions_are_listed_latest_first_in_pages() {
    let bench = bench().await;
    let mut ids = Vec::new();
    for content in ["1", "2", "3"] {
        ids.push(bench.put("versioned", "k", content.as_bytes()).await.unwrap());
    }
    ids.push(bench.client.delete_object().bucket("versioned").key("k").send().await.unwrap().version_id.unwrap());
    ids.push(bench.put("versioned", "l", b"4").await.unwrap());
    let list = bench.client.list_object_versions().bucket("versioned");
    let all = list.clone().send().await.unwrap();
    assert_eq!((all.versions().len(), all.delete_markers().len()), (4, 1));
    assert_eq!(all.delete_markers()[0].is_latest(), Some(true));
    let listed: Vec<&str> = all.versions().iter().filter_map(|v| v.version_id()).collect();
    assert_eq!(listed, [&ids[2], &ids[1], &ids[0], &ids[4]]);
    assert_eq!(all.versions()[0].is_latest(), Some(false));

    let (mut seen, mut key, mut id) = (0, None, None);
    loop {
        let page = list.clone().max_keys(2).set_key_marker(key).set_version_id_marker(id).send().await.unwrap();
        seen += page.versions().len() + page.delete_markers().len();
        if page.is_truncated() != Some(true) {
            break;
        }
        (key, id) = (page.next_key_marker, page.next_version_id_marker);
    }
    assert_eq!(seen, 5);
    let current = bench.client.list_objects_v2().bucket("versioned").send().await.unwrap();
    assert_eq!(current.contents().iter().filter_map(|o| o.key()).collect::<Vec<_>>(), ["l"]);
}
