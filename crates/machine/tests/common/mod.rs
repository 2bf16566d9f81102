//! What the tests of a running machine share.

use std::{fs::File, io::Write};

/// Whether this computer has a KVM that tests may use. Where it has none, that is said, because a test that did not
/// run must not look like one that passed.
pub(crate) fn kvm_is_there(test: &str) -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            // Straight to the terminal: the test harness would swallow it.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: /dev/kvm: {error}");
            false
        }
    }
}
