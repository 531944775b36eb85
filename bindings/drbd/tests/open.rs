//! Against the kernel of this machine, whatever it has.

use nasd_drbd::{Drbd, OpenError};

/// Loads nothing: on a machine with the module this shows that its state can be read, on one without
/// that its absence is told as such.
#[test]
fn presence_or_absence_of_the_module_is_told() {
    let loaded = std::path::Path::new("/sys/module/drbd").exists();
    match Drbd::open() {
        Ok(mut drbd) => {
            assert!(drbd.status().is_ok());
            assert!(drbd.events().is_ok());
        }
        Err(error) => {
            assert!(!loaded, "{error}");
            assert_eq!(error, OpenError::ModuleAbsent);
        }
    }
}
