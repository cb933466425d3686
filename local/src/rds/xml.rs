//! The AWS Query protocol's answers.

/// XML as it is written: elements that are closed by whoever opens them.
#[derive(Debug, Default)]
pub(super) struct Xml(String);

impl Xml {
    pub fn text(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        let escaped = value.as_ref().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.0.push_str(&format!("<{name}>{escaped}</{name}>"));
        self
    }

    pub fn optional(&mut self, name: &str, value: Option<impl AsRef<str>>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    pub fn number(&mut self, name: &str, value: impl Into<i64>) -> &mut Self {
        self.text(name, value.into().to_string())
    }

    pub fn inside(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push_str(&format!("<{name}>"));
        fill(self);
        self.0.push_str(&format!("</{name}>"));
        self
    }

    pub fn tags(&mut self, tags: &std::collections::BTreeMap<String, String>) -> &mut Self {
        self.inside("TagList", |xml| {
            for (key, value) in tags {
                xml.inside("Tag", |xml| {
                    xml.text("Key", key).text("Value", value);
                });
            }
        })
    }

    pub fn finish(self) -> String {
        self.0
    }
}

pub(super) fn response(action: &str, result: &str) -> String {
    format!(
        "<{action}Response xmlns=\"http://rds.amazonaws.com/doc/2014-10-31/\"><{action}Result>{result}</{action}Result>\
         <ResponseMetadata><RequestId>scripted</RequestId></ResponseMetadata></{action}Response>"
    )
}

pub(super) fn error(code: &str, message: &str) -> String {
    let mut xml = Xml::default();
    xml.inside("Error", |xml| {
        xml.text("Type", "Sender").text("Code", code).text("Message", message);
    });
    let body = xml.finish();
    format!(
        "<ErrorResponse xmlns=\"http://rds.amazonaws.com/doc/2014-10-31/\">{body}<RequestId>scripted</RequestId></ErrorResponse>"
    )
}
