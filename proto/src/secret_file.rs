//! Files with secrets, which only their program should read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Warns where others may read or change the file that `setting` names.
///
/// The group may read a file of another owner: so volumes of Kubernetes give a Secret to a program that is not root.
pub fn warn_if_loose(setting: &str, path: &Path) {
    // Whoever reads the file says that it cannot be read.
    let Ok(metadata) = std::fs::metadata(path) else { return };
    let Ok(own) = std::fs::metadata("/proc/self") else { return };
    if let Some(who) = looseness(&metadata, own.uid()) {
        let (file, mode) = (path.display(), format!("{:04o}", metadata.mode() & 0o7777));
        tracing::warn!(setting, %file, mode, "holds a secret, and {who}; chmod 600 is enough");
    }
}

/// Who else has access, for a program that runs as the user `own`.
fn looseness(metadata: &Metadata, own: u32) -> Option<&'static str> {
    let mode = metadata.mode();
    if mode & 0o022 != 0 {
        Some("others may change it")
    } else if mode & 0o004 != 0 {
        Some("everybody may read it")
    } else if mode & 0o040 != 0 && metadata.uid() == own {
        Some("its group may read it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_else_has_access_is_named() {
        let file = std::env::temp_dir().join(format!("cosec-secret-{}", std::process::id()));
        std::fs::write(&file, "secret").unwrap();
        let own = std::fs::metadata(&file).unwrap().uid();
        let check = |mode: u32, user: u32, expected: Option<&str>| {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(looseness(&std::fs::metadata(&file).unwrap(), user), expected, "{mode:o}");
        };
        check(0o600, own, None);
        check(0o400, own, None);
        check(0o440, own + 1, None);
        check(0o440, own, Some("its group may read it"));
        check(0o644, own + 1, Some("everybody may read it"));
        check(0o660, own + 1, Some("others may change it"));
        check(0o666, own, Some("others may change it"));
        std::fs::remove_file(file).unwrap();
    }
}
