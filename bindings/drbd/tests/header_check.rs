//! Compares the checked-in numbers with those that the kernel headers of this machine give. Runs
//! only with the feature `regenerate`, which needs libclang and headers (see `build.rs`). A table
//! whose headers are absent is not compared, and that is said.
#![cfg(feature = "regenerate")]

use std::path::Path;

fn compare(name: &str) {
    let made = Path::new(env!("OUT_DIR")).join(format!("{name}.rs"));
    let Ok(made) = std::fs::read_to_string(made) else {
        println!("not compared: no headers for {name} on this machine");
        return;
    };
    let kept = Path::new("src/generated").join(format!("{name}.rs"));
    let kept = std::fs::read_to_string(kept).unwrap_or_default();
    let differing: Vec<_> = made.lines().filter(|line| !kept.contains(line)).collect();
    assert!(differing.is_empty(), "{name}: the headers say {differing:#?}");
    assert_eq!(made, kept, "{name}: the checked-in table has more than the headers");
}

#[test]
fn the_8_4_table_is_that_of_the_headers() {
    compare("v84");
}

#[test]
fn the_9_table_is_that_of_the_headers() {
    compare("v9");
}
