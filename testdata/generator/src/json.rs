//! Just enough JSON to write expectation files: keys keep their order, so that the text is the same each time.

use std::fmt::{self, Display, Write};

/// A JSON value.
#[derive(Clone, Debug)]
pub enum Json {
    /// An integer.
    Number(u64),
    /// A string.
    Text(String),
    /// Values in order.
    List(Vec<Json>),
    /// Members in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A string value.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// An object from (key, value) pairs.
    #[must_use]
    pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Json)>) -> Self {
        Self::Object(members.into_iter().map(|(k, v)| (k.into(), v)).collect())
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Text(text) => quote(f, text),
            Self::List(items) => {
                let parts = items.iter().map(|item| (None, item));
                block(f, depth, ['[', ']'], parts)
            }
            Self::Object(members) => {
                let flat = members.iter().all(|(_, v)| !matches!(v, Self::List(_) | Self::Object(_)));
                if flat {
                    f.write_char('{')?;
                    for (n, (key, value)) in members.iter().enumerate() {
                        f.write_str(if n == 0 { "" } else { ", " })?;
                        quote(f, key)?;
                        f.write_str(": ")?;
                        value.write(f, depth)?;
                    }
                    return f.write_char('}');
                }
                let parts = members.iter().map(|(key, value)| (Some(key.as_str()), value));
                block(f, depth, ['{', '}'], parts)
            }
        }
    }
}

impl Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)?;
        f.write_char('\n')
    }
}

fn block<'a>(
    f: &mut fmt::Formatter<'_>,
    depth: usize,
    [open, close]: [char; 2],
    parts: impl Iterator<Item = (Option<&'a str>, &'a Json)>,
) -> fmt::Result {
    f.write_char(open)?;
    let mut any = false;
    for (key, value) in parts {
        f.write_str(if any { ",\n" } else { "\n" })?;
        any = true;
        write!(f, "{:1$}", "", 2 * depth + 2)?;
        if let Some(key) = key {
            quote(f, key)?;
            f.write_str(": ")?;
        }
        value.write(f, depth + 1)?;
    }
    if any {
        write!(f, "\n{:1$}", "", 2 * depth)?;
    }
    f.write_char(close)
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_order_is_kept() {
        let value = Json::object([("b", Json::text("a\"\n\u{1}")), ("a", Json::List(vec![Json::Number(1)]))]);
        assert_eq!(value.to_string(), "{\n  \"b\": \"a\\\"\\n\\u0001\",\n  \"a\": [\n    1\n  ]\n}\n");
    }
}
