//! A stock Linux kernel, Debian's own that the nested host runs too, is expanded and rewritten; nothing is booted here.

use std::path::Path;

use ftvm_lab::nested::Host;
use ftvm_machine::boot::linux::Linux;
use ftvm_machine::boot::linux::rewrite::kallsyms::Symbols;
use ftvm_machine::boot::linux::rewrite::{Patch, Purpose, plan, rewrite};

/// More kernels to look at, separated by spaces.
const MORE: &str = "FTVM_TEST_KERNELS";

fn check(path: &Path) {
    let name = path.display();
    let bytes = std::fs::read(path).unwrap();
    let linux = Linux::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut image = linux.vmlinux().to_vec();
    let symbols = Symbols::find(&image, linux.layout()).unwrap_or_else(|| panic!("{name}: no symbols"));
    let planned = plan(&image, linux.layout(), &symbols).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(rewrite(&mut image, linux.layout()).unwrap(), planned);

    let of = |purpose| -> Vec<&Patch> { planned.iter().filter(|patch| patch.purpose == purpose).collect() };
    let rdtsc = of(Purpose::Rdtsc).len();
    println!("{name}: {:?}, {} symbols, {rdtsc} RDTSC", linux.banner(), symbols.len());
    assert!((80..200).contains(&rdtsc), "{name}: {rdtsc}");
    assert!(
        of(Purpose::Rdtsc)
            .iter()
            .any(|patch| patch.place.starts_with("native_sched_clock+"))
    );
    let places = |purpose| -> Vec<&str> {
        of(purpose)
            .iter()
            .map(|patch| patch.place.split('+').next().unwrap())
            .collect()
    };
    assert_eq!(places(Purpose::GpHook), ["asm_exc_general_protection"], "{name}");
    assert_eq!(places(Purpose::Cr4Startup).len(), 1, "{name}");
    assert!(places(Purpose::Cr4Clear).contains(&"cpu_init"), "{name}");
    assert_eq!(places(Purpose::Cr4Toggle), ["__switch_to_xtra"], "{name}");

    let differing = image.iter().zip(linux.vmlinux()).filter(|(a, b)| a != b).count();
    let changed = 2 * rdtsc + 3 + (planned.len() - rdtsc - 1);
    assert!(
        (changed - 1..=changed).contains(&differing),
        "{name}: {differing} bytes, {changed} expected"
    );
    assert!(
        plan(&image, linux.layout(), &symbols).is_err(),
        "{name}: it is rewritten only once"
    );
}

#[test]
fn debians_kernel_is_rewritten() {
    let host = Host::locate().unwrap();
    check(host.kernel_image());
    for path in std::env::var(MORE).unwrap_or_default().split_whitespace() {
        check(Path::new(path));
    }
}
