//! The AWS Query protocol's requests: `Action=…&Name.member.1=…`.

use std::collections::BTreeMap;

/// A form's fields.
pub(super) fn fields(body: &str) -> BTreeMap<String, String> {
    let decoded =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

/// `Name.{member}.1`, `.2`, …
pub(super) fn list(fields: &BTreeMap<String, String>, name: &str, member: &str) -> Vec<String> {
    (1..).map_while(|n| fields.get(&format!("{name}.{member}.{n}")).cloned()).collect()
}

/// `Tags.Tag.1.Key`, `Tags.Tag.1.Value`, …
pub(super) fn tags(fields: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let tag = |n: u32| {
        let key = fields.get(&format!("Tags.Tag.{n}.Key"))?;
        Some((key.clone(), fields.get(&format!("Tags.Tag.{n}.Value")).cloned().unwrap_or_default()))
    };
    (1..).map_while(tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_tags_are_numbered_fields() {
        let body = "Action=StartExportTask&ExportOnly.member.1=shop.public.a%20b&ExportOnly.member.2=shop&Tags.Tag.1.Key=k&Tags.Tag.1.Value=a+b";
        let fields = fields(body);
        assert_eq!(list(&fields, "ExportOnly", "member"), ["shop.public.a b", "shop"]);
        assert_eq!(tags(&fields), BTreeMap::from([("k".to_owned(), "a b".to_owned())]));
    }
}
