//! Reads a JSON object field by field, so that nothing in it goes unread.
//!
//! Every field is taken once, by name and type; what nobody took is refused. `null` means that a field is not set, as
//! OpenAI's clients send it. Values stay text until they are taken: a list of token ids never becomes a tree of values.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;

/// Most fields of an object, unless said otherwise: requests have fewer, and what has more is read no further.
pub(crate) const MAX_FIELDS: usize = 128;

/// Longest part of a client's value that a message repeats, in characters.
const SHOWN_CHARACTERS: usize = 60;

/// The fields of an object that were not taken yet.
pub(crate) struct JsonFields<'a> {
    path: String,
    entries: BTreeMap<String, &'a RawValue>,
}

impl<'a> JsonFields<'a> {
    /// Reads a request's body.
    ///
    /// # Errors
    /// When it is not UTF-8, not JSON, not an object, has too many fields, or names one twice.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let invalid = |message: String| ApiError::new(cosec_proto::ErrorCode::InvalidArgument, message);
        let text =
            std::str::from_utf8(body).map_err(|cause| invalid(format!("the body is not UTF-8 text: {cause}")))?;
        let entries = entries(text, MAX_FIELDS).map_err(|cause| {
            let hint = if is_at_nan(text, &cause) { " (JSON has no NaN and no Infinity)" } else { "" };
            let what = if cause.is_data() { "the body is not a request" } else { "the body is not JSON" };
            invalid(format!("{what}: {cause}{hint}"))
        })?;
        Ok(Self { path: String::new(), entries })
    }

    /// Reads a value as an object of at most `most` fields.
    ///
    /// # Errors
    /// When it is none, has more, or names one twice.
    pub(crate) fn of(path: String, raw: &'a RawValue, most: usize) -> Result<Self, ApiError> {
        match entries(raw.get(), most) {
            Ok(entries) => Ok(Self { path, entries }),
            Err(cause) if raw.get().starts_with('{') => {
                let message = format!("{path}: {}", without_position(&cause.to_string()));
                Err(ApiError::field(path, message))
            }
            Err(_) => Err(ApiError::value(path, shown(raw), "an object")),
        }
    }

    /// Takes a field as it stands.
    pub(crate) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.entries.remove(name).filter(|raw| raw.get() != "null")
    }

    /// Takes a field of type `T`, which messages call `expected`.
    ///
    /// # Errors
    /// When the value is of another type.
    pub(crate) fn take<T: Deserialize<'a>>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        self.raw(name).map(|raw| typed(self.path_of(name), raw, expected)).transpose()
    }

    /// Takes a field without which there is no request.
    ///
    /// # Errors
    /// When it is missing, or of another type.
    pub(crate) fn require<T: Deserialize<'a>>(&mut self, name: &str, expected: &str) -> Result<T, ApiError> {
        self.take(name, expected)?.ok_or_else(|| self.missing(name))
    }

    /// Takes such a field as it stands.
    ///
    /// # Errors
    /// When it is missing.
    pub(crate) fn require_raw(&mut self, name: &str) -> Result<&'a RawValue, ApiError> {
        self.raw(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> ApiError {
        let path = self.path_of(name);
        let message = format!("{path} is missing");
        ApiError::field(path, message)
    }

    /// Takes an object.
    ///
    /// # Errors
    /// When the value is none.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<JsonFields<'a>>, ApiError> {
        self.raw(name).map(|raw| JsonFields::of(self.path_of(name), raw, MAX_FIELDS)).transpose()
    }

    /// Takes all fields that are left, with their paths.
    pub(crate) fn rest(self) -> impl Iterator<Item = (String, String, &'a RawValue)> {
        let Self { path, entries } = self;
        entries.into_iter().map(move |(name, raw)| (join(&path, &name), name, raw))
    }

    /// Refuses the fields in `known` that are set, as not supported; the rest that nobody took as unknown.
    ///
    /// # Errors
    /// Names the first such field.
    pub(crate) fn finish(mut self, known: &[&str]) -> Result<(), ApiError> {
        for name in known {
            if self.raw(name).is_some() {
                let path = self.path_of(name);
                let message = format!("{path} is not supported");
                return Err(ApiError::field(path, message));
            }
        }
        match self.entries.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path = self.path_of(&shortened(name));
                let message = format!("{path} is not a parameter of this request");
                Err(ApiError::field(path, message))
            }
        }
    }

    /// A field's full name.
    pub(crate) fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// Reads one value; `path` names it in messages.
///
/// # Errors
/// When the value is not `expected`.
pub(crate) fn typed<'a, T: Deserialize<'a>>(path: String, raw: &'a RawValue, expected: &str) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_str(raw.get());
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let inner = error.path().to_string();
        if inner == "." {
            return ApiError::value(&path, shown(raw), expected);
        }
        let separator = if inner.starts_with('[') { "" } else { "." };
        let place = format!("{path}{separator}{inner}");
        let cause = without_position(&error.inner().to_string());
        ApiError::field(&place, format!("{place}: {cause}; {path} must be {expected}"))
    })?;
    // A whole number of 128 bits is read up to the point of a fraction.
    json.end().map_err(|_| ApiError::value(&path, shown(raw), expected))?;
    Ok(value)
}

/// The beginning of a client's value, for messages.
pub(crate) fn shown(raw: &RawValue) -> String {
    shortened(raw.get())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// serde_json counts lines from the start of the value, which tells a client nothing.
fn without_position(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

/// Python's json module writes NaN and Infinity.
fn is_at_nan(text: &str, cause: &serde_json::Error) -> bool {
    let line = text.lines().nth(cause.line().saturating_sub(1)).unwrap_or_default();
    let at = line.get(cause.column().saturating_sub(1)..).unwrap_or_default();
    at.starts_with("NaN") || at.starts_with("Infinity") || at.starts_with("I") && line.contains("-Infinity")
}

/// An object's fields; serde_json alone would let the last of two equal names win.
fn entries(text: &str, most: usize) -> Result<BTreeMap<String, &RawValue>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let entries = json.deserialize_map(JsonEntries { most })?;
    json.end()?;
    Ok(entries)
}

/// Reads them, no more than `most`.
struct JsonEntries {
    most: usize,
}

impl<'de> Visitor<'de> for JsonEntries {
    type Value = BTreeMap<String, &'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut entries = BTreeMap::new();
        while let Some((name, raw)) = map.next_entry::<String, &'de RawValue>()? {
            if entries.len() == self.most {
                return Err(de::Error::custom(format_args!("more than {} fields", self.most)));
            }
            if entries.insert(name.clone(), raw).is_some() {
                return Err(de::Error::custom(format_args!("{} occurs twice", shortened(&name))));
            }
        }
        Ok(entries)
    }
}

/// A list of at most `MOST` elements; one that has more is read no further.
pub(crate) struct BoundedList<T, const MOST: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for BoundedList<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} elements")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Vec<T>, S::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() == MOST {
                        return Err(de::Error::custom(format_args!("more than {MOST} elements")));
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Elements::<T, MOST>(PhantomData)).map(BoundedList)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_there_and_refuses_the_rest() {
        let mut fields = JsonFields::parse(br#"{"n": 2, "user": null, "cosec": {"tau": "x", "q": 1}}"#).unwrap();
        assert_eq!(fields.take::<u32>("n", "a whole number").unwrap(), Some(2));
        assert_eq!(fields.take::<String>("user", "a string").unwrap(), None);
        let mut cosec = fields.object("cosec").unwrap().unwrap();
        let error = cosec.take::<f64>("tau", "a number").unwrap_err();
        assert_eq!(error.message, r#"cosec.tau is "x"; it must be a number"#);
        let error = cosec.finish(&[]).unwrap_err();
        assert_eq!(error.parameter.as_deref(), Some("cosec.q"));
        fields.finish(&[]).unwrap();
    }

    #[test]
    fn names_the_place_inside_a_list() {
        let mut fields = JsonFields::parse(br#"{"ids": [1, 2, -3]}"#).unwrap();
        let error = fields.take::<Vec<u32>>("ids", "a list of token ids").unwrap_err();
        assert_eq!(error.parameter.as_deref(), Some("ids[2]"));
    }

    #[test]
    fn null_sets_nothing_but_an_unknown_name_stays_unknown() {
        let fields = JsonFields::parse(br#"{"tools": null}"#).unwrap();
        fields.finish(&["tools"]).unwrap();
        let fields = JsonFields::parse(br#"{"foo": null}"#).unwrap();
        assert!(fields.finish(&["tools"]).is_err());
        let fields = JsonFields::parse(br#"{"tools": []}"#).unwrap();
        assert_eq!(fields.finish(&["tools"]).unwrap_err().message, "tools is not supported");
    }

    #[test]
    fn malformed_bodies_are_errors() {
        let message = |body: &[u8]| JsonFields::parse(body).err().unwrap().message;
        assert!(message(b"{\"temperature\": NaN}").contains("no NaN"), "{}", message(b"{\"temperature\": NaN}"));
        assert!(message(b"{\"temperature\": -Infinity}").contains("no NaN"));
        assert!(message(b"{\"a\": 1, \"a\": 2}").contains("a occurs twice"));
        assert!(message(b"[1]").contains("object"));
        assert!(message(b"").contains("EOF"));
        assert!(message(b"{\"a\": \"\xff\"}").contains("UTF-8"));
        let deep = [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat();
        assert!(message(&deep).contains("JSON"));
    }

    #[test]
    fn what_has_too_many_elements_is_read_no_further() {
        // Behind the bound the text may be anything.
        let fields: String = (0..=MAX_FIELDS).map(|at| format!("\"{at}\": 1,")).collect();
        let error = JsonFields::parse(format!("{{{fields} and no JSON").as_bytes()).err().unwrap();
        assert!(error.message.contains("more than 128 fields"), "{}", error.message);
        let body = format!("{{\"list\": [{}]}}", vec!["\"\""; 100_000].join(","));
        let mut fields = JsonFields::parse(body.as_bytes()).unwrap();
        let raw = fields.raw("list").unwrap();
        let error = typed::<BoundedList<String, 3>>("list".to_owned(), raw, "a list of 3").err().unwrap();
        assert_eq!(error.parameter.as_deref(), Some("list"));
        assert!(error.message.ends_with("it must be a list of 3"), "{}", error.message);
        let list: BoundedList<u32, 3> =
            typed("list".to_owned(), serde_json::from_str("[1,2,3]").unwrap(), "").unwrap();
        assert_eq!(list.0, [1, 2, 3]);
    }
}
