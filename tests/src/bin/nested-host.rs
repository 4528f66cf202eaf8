//! Runs commands in nested hosts.
fn main() {
    let run = tests::nested::Run::new(std::env::args_os().skip(1));
    let host = tests::nested::Host::locate().unwrap();
    let o = host.start(&run, tests::nested::Streams::inherit()).unwrap().wait();
    eprintln!("{o:?}");
}
