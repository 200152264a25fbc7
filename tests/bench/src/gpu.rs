//! What a GPU is able to do by its data sheet, and what the driver says of its memory.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Limits of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second that its memory gives.
    pub bandwidth: f64,
    /// Multiplications and additions per second of dense bf16 matrices.
    pub arithmetic: f64,
}

/// By the data sheets; a name has all the words.
const SHEETS: [(&[&str], Limits); 5] = [
    (&["H200", "NVL"], Limits { bandwidth: 4.8e12, arithmetic: 835e12 }),
    (&["H200"], Limits { bandwidth: 4.8e12, arithmetic: 989e12 }),
    (&["H100", "NVL"], Limits { bandwidth: 3.9e12, arithmetic: 835e12 }),
    (&["H100", "PCIe"], Limits { bandwidth: 2.0e12, arithmetic: 756e12 }),
    (&["H100"], Limits { bandwidth: 3.35e12, arithmetic: 989e12 }),
];

impl Limits {
    /// Those of the GPU that the driver calls `name`; `None` of one that is not known here.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        SHEETS.into_iter().find(|(words, _)| words.iter().all(|word| name.contains(word))).map(|(_, limits)| limits)
    }
}

/// What nvidia-smi says of `field` for GPU `number`, without units.
///
/// # Errors
/// When there is no driver or no such GPU.
pub fn query(number: usize, field: &str) -> Result<String> {
    let mut command = Command::new("nvidia-smi");
    command.arg(format!("--query-gpu={field}")).args(["--format=csv,noheader,nounits", "--id", &number.to_string()]);
    let output = command.output().context("nvidia-smi cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("nvidia-smi: {text}");
    }
    Ok(text)
}

/// The number in `cuda` or `cuda:N`; `None` of other devices.
#[must_use]
pub fn number(device: &str) -> Option<usize> {
    match device.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_are_found_by_the_drivers_names() {
        let bandwidth = |name| Limits::of(name).map(|limits| limits.bandwidth);
        assert_eq!(bandwidth("NVIDIA H100 80GB HBM3"), Some(3.35e12));
        assert_eq!(bandwidth("NVIDIA H100 PCIe"), Some(2.0e12));
        assert_eq!(bandwidth("NVIDIA H200"), Some(4.8e12));
        assert_eq!(bandwidth("NVIDIA L4"), None);
    }

    #[test]
    fn devices_have_numbers() {
        assert_eq!(["cuda", "cuda:3", "cpu", "cuda:x"].map(number), [Some(0), Some(3), None, None]);
    }
}
