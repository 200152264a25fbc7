//! Where a model runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the forward pass runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// On this machine's cores.
    #[default]
    Cpu,
    /// On the NVIDIA GPU of this number, as CUDA counts them.
    Cuda(usize),
}

impl DeviceChoice {
    /// Tokens of a forward pass that keep the device busy without delaying other sessions for long.
    #[must_use]
    pub fn step_tokens(self) -> usize {
        match self {
            Self::Cpu => 512,
            Self::Cuda(_) => 2048,
        }
    }

    /// Name of all devices that compute the same bits.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("cuda") {
            Some("") => Some(0),
            Some(number) => number.strip_prefix(':').and_then(|number| number.parse().ok()),
            None => None,
        };
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(number)) => Ok(Self::Cuda(number)),
            _ => Err(format!("device is {text:?}; expected cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Cpu => f.write_str(self.kind()),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda1", "cuda:1:2", "candle"] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains(&format!("device is {text:?}; expected cpu")), "{error}");
        }
    }
}
