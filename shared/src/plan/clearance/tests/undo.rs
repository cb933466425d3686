//! Which database comes back.

use super::*;
use crate::domain::put_aside::Exchange;
use crate::plan::clearance::asked::last_previous;

#[test]
fn the_database_that_a_swap_has_put_aside_last_is_the_one_that_comes_back() {
    // Older backups were swapped in later.
    let notes: BTreeMap<String, PutAside> = [
        ("shop_before_20250601-020000", Exchange::Replaced, "2025-06-01T12:00:00Z"),
        ("shop_before_20250530-020000", Exchange::Replaced, "2025-06-21T12:00:00Z"),
        ("shop_before_20250529-020000", Exchange::Replaced, "2025-06-21T12:00:00Z"),
        ("shop_before_20250602-020000", Exchange::Undone, "2025-06-22T12:00:00Z"),
        ("shop_before_x", Exchange::Replaced, "2025-06-22T12:00:00Z"),
        ("shop_undone_20250601-020000", Exchange::Undone, "2025-06-22T12:00:00Z"),
        ("shopper_before_20250622-020000", Exchange::Replaced, "2025-06-22T12:00:00Z"),
    ]
    .map(|(name, by, at)| {
        (name.to_owned(), PutAside { by, by_backup: None, at: at.parse().unwrap(), keep_until: None })
    })
    .into();
    let last = last_previous("shop", &notes).unwrap();
    assert_eq!((last.name.as_str(), last.id), ("shop_before_20250530-020000", "20250530-020000".parse().unwrap()));
    assert_eq!(last_previous("other", &notes), None);
}

#[test]
fn a_database_without_a_note_does_not_come_back_and_is_named() {
    let undo = |previous: Option<&str>| {
        let mut facts = good(restores()[4].clone());
        edit_target(&mut facts, |target| {
            target.databases.extend(["shop_before_x", "shopper_before_20250622-020000"].map(str::to_owned));
            target.databases.remove("shop_before_20250620-020000");
            target.databases.extend(previous.map(str::to_owned));
        });
        facts.restore =
            Restore::Undo { database: "shop".into(), previous: None, put_aside: None, aside: aside_name("shop", id()) };
        refusals(&facts).iter().map(|refusal| format!("{}: {refusal}", refusal.code())).collect::<Vec<_>>()
    };
    let nothing = "restore-nothing-to-undo: no swap has put a database \"shop\" aside";
    assert_eq!(undo(None), [nothing]);
    let unmarked = format!("{nothing}; \"shop_before_20250620-020000\" has no note that says so");
    assert_eq!(undo(Some("shop_before_20250620-020000")), [unmarked]);
}

#[test]
fn a_database_without_a_note_is_told_beside_the_one_that_comes_back() {
    let undo = restores()[4].clone();
    let notices = |databases: &[&str]| {
        let mut facts = good(undo.clone());
        let note = PutAside { by: Exchange::Replaced, by_backup: None, at: now(), keep_until: None };
        edit_target(&mut facts, |target| {
            target.notes.insert("shop_before_20250620-020000".into(), note);
            target.databases.extend(databases.iter().map(|name| (*name).to_owned()));
        });
        passed_over(&facts.restore, &facts.target.unwrap())
    };
    assert_eq!(notices(&["shop_before_x"]), None);
    assert!(notices(&["shop_before_20250622-020000"]).unwrap().contains("shop_before_20250622-020000"));
}
