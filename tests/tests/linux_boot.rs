//! Stock Linux kernels are loaded and rewritten: Debian's own, the one that the nested host runs.

use std::path::Path;

use vmm::boot::linux::Linux;
use vmm::boot::linux::rewrite::{Purpose, rewrite};

fn count(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let begun = std::time::Instant::now();
    let linux = Linux::parse(&bytes).unwrap();
    let parsed = begun.elapsed();
    let mut image = linux.vmlinux().to_vec();
    let patches = rewrite(&mut image, linux.layout()).unwrap();
    let number = |purpose| patches.iter().filter(|patch| patch.purpose == purpose).count();
    println!(
        "{} {:?} {:?} {:?}",
        path.display(),
        linux.banner(),
        parsed,
        begun.elapsed()
    );
    for patch in patches.iter().filter(|patch| patch.purpose != Purpose::Rdtsc) {
        println!("  {patch:x?}");
    }
    println!("  rdtsc {}", number(Purpose::Rdtsc));
    assert_eq!(number(Purpose::GpHook), 1);
    assert_eq!(number(Purpose::Cr4Startup), 1);
}

#[test]
fn given() {
    for path in std::env::var("KERNELS").unwrap().split(' ') {
        count(Path::new(path));
    }
}
