//! JSON files and their sections. Every error names file, field, found and expected value.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Largest value of a size in a config. Products of three of them fit 64 bits with the sums that are made of them.
const MAX_SIZE: u64 = 1 << 20;

/// A JSON file with one object.
#[derive(Clone, Debug)]
pub struct JsonFile {
    path: PathBuf,
    bytes: Vec<u8>,
    fields: Map<String, Value>,
}

impl JsonFile {
    /// Reads `directory/name`.
    ///
    /// # Errors
    /// [`ConfigFileError::Unreadable`], or [`ConfigFileError::Malformed`] when it holds no JSON object.
    pub fn open(directory: &Path, name: &str) -> Result<Self, ConfigFileError> {
        let path = directory.join(name);
        let unreadable = |source| ConfigFileError::Unreadable { file: path.clone(), source };
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        Self::parse(&path, bytes)
    }

    /// Parses `bytes` as the file at `path`.
    ///
    /// # Errors
    /// [`ConfigFileError::Malformed`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, ConfigFileError> {
        let malformed = |source| ConfigFileError::Malformed { file: path.to_owned(), source };
        let fields = serde_json::from_slice(&bytes).map_err(malformed)?;
        Ok(Self { path: path.to_owned(), bytes, fields })
    }

    /// A config made from the file at `path`, which has another format.
    #[must_use]
    pub fn of_fields(path: &Path, fields: Map<String, Value>) -> Self {
        let bytes = Value::from(fields.clone()).to_string().into_bytes();
        Self { path: path.to_owned(), bytes, fields }
    }

    /// As [`Self::open`], `None` when there is no such file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_optional(directory: &Path, name: &str) -> Result<Option<Self>, ConfigFileError> {
        match Self::open(directory, name) {
            Ok(file) => Ok(Some(file)),
            Err(ConfigFileError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Content of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The object of the whole file.
    #[must_use]
    pub fn root(&self) -> ConfigSection<'_> {
        ConfigSection { file: &self.path, prefix: String::new(), fields: &self.fields }
    }
}

/// An object of a JSON file. A field that is null counts as absent.
#[derive(Clone, Debug)]
pub struct ConfigSection<'a> {
    file: &'a Path,
    /// Path to this object, with a dot at its end; empty at the root.
    prefix: String,
    fields: &'a Map<String, Value>,
}

impl<'a> ConfigSection<'a> {
    /// Whether `field` is there.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// The value of `field`.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// A number of things: an integer of at least 1.
    ///
    /// # Errors
    /// [`ConfigFileError`].
    pub fn size(&self, field: &str) -> Result<usize, ConfigFileError> {
        self.optional_size(field)?.ok_or_else(|| self.missing(field, "an integer"))
    }

    /// As [`Self::size`], with a default.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize, ConfigFileError> {
        Ok(self.optional_size(field)?.unwrap_or(default))
    }

    /// As [`Self::size`], if it is there.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn optional_size(&self, field: &str) -> Result<Option<usize>, ConfigFileError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.invalid(field, format!("an integer from 1 to {MAX_SIZE}"))),
        }
    }

    /// As [`Self::size_or`], 0 included.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn whole_or(&self, field: &str, default: usize) -> Result<usize, ConfigFileError> {
        match self.get(field).map(Value::as_u64) {
            None => Ok(default),
            Some(Some(size @ 0..=MAX_SIZE)) => Ok(size as usize),
            Some(_) => Err(self.invalid(field, format!("an integer from 0 to {MAX_SIZE}"))),
        }
    }

    /// A finite number, with a default.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, ConfigFileError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.invalid(field, "a number".to_owned())),
        }
    }

    /// A number above 0.
    ///
    /// # Errors
    /// [`ConfigFileError`].
    pub fn positive(&self, field: &str) -> Result<f64, ConfigFileError> {
        let value = self.get(field).ok_or_else(|| self.missing(field, "a number above 0"))?;
        let positive = value.as_f64().filter(|&number| number > 0.0);
        positive.ok_or_else(|| self.invalid(field, "a number above 0".to_owned()))
    }

    /// A boolean, with a default.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigFileError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(field, "true or false".to_owned())),
        }
    }

    /// One of `names`, as its meaning.
    ///
    /// # Errors
    /// [`ConfigFileError`] lists the names.
    pub fn one_of<T: Copy>(&self, field: &str, names: &[(&str, T)]) -> Result<T, ConfigFileError> {
        let expected = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let value = self.get(field).ok_or_else(|| self.missing(field, &format!("one of {}", expected())))?;
        let found = value.as_str().and_then(|text| names.iter().find(|(name, _)| *name == text));
        found.map(|&(_, meaning)| meaning).ok_or_else(|| self.invalid(field, format!("one of {}", expected())))
    }

    /// As [`Self::one_of`], with a default.
    ///
    /// # Errors
    /// As [`Self::one_of`].
    pub fn one_of_or<T: Copy>(&self, field: &str, default: &str, names: &[(&str, T)]) -> Result<T, ConfigFileError> {
        let fallback = names.iter().find(|(name, _)| *name == default);
        match fallback {
            Some(&(_, meaning)) if !self.has(field) => Ok(meaning),
            _ => self.one_of(field, names),
        }
    }

    /// The object in `field`, if it is there.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn section(&self, field: &str) -> Result<Option<ConfigSection<'a>>, ConfigFileError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let fields = value.as_object().ok_or_else(|| self.invalid(field, "an object".to_owned()))?;
        Ok(Some(ConfigSection { file: self.file, prefix: format!("{}{field}.", self.prefix), fields }))
    }

    /// A token id or a list of them; `None` when the field is absent.
    ///
    /// # Errors
    /// [`ConfigFileError::Invalid`].
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>, ConfigFileError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(values) => values.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.invalid(field, "a token id or a list of them".to_owned()))
    }

    /// The error that `field` is not `expected`.
    #[must_use]
    pub fn invalid(&self, field: &str, expected: String) -> ConfigFileError {
        let mut found = self.get(field).map_or("absent".to_owned(), Value::to_string);
        if let Some((end, _)) = found.char_indices().nth(60) {
            found.truncate(end);
            found.push('…');
        }
        ConfigFileError::Invalid {
            file: self.file.to_owned(),
            field: format!("{}{field}", self.prefix),
            found,
            expected,
        }
    }

    fn missing(&self, field: &str, expected: &str) -> ConfigFileError {
        let field = format!("{}{field}", self.prefix);
        ConfigFileError::Missing { file: self.file.to_owned(), field, expected: expected.to_owned() }
    }
}

/// Why a JSON file is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum ConfigFileError {
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{}: is no JSON object: {source}", file.display())]
    Malformed { file: PathBuf, source: serde_json::Error },
    #[error("{}: field {field} is missing; expected {expected}", file.display())]
    Missing { file: PathBuf, field: String, expected: String },
    #[error("{}: field {field} is {found}; expected {expected}", file.display())]
    Invalid { file: PathBuf, field: String, found: String, expected: String },
}
