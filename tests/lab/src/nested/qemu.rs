//! QEMU's command line: an emulated AMD machine with SVM, on which Linux offers `/dev/kvm`.
//!
//! Nothing here needs KVM, root or a network. The processor is QEMU's EPYC model less what the emulator lacks, spelt
//! out, so that every QEMU shows the same processor. The process is started through `setpriv --pdeathsig`, so that the
//! kernel ends it when the thread that started it ends for whatever reason: no stray emulators.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::channel::Channel;
use super::programs;
use super::share::Share;

/// EPYC with SVM, without the features that QEMU 7.2's emulator does not have.
const PROCESSOR: &str = "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec";
/// For speed: no self-tests, mitigations, auditing, waiting for RCU grace periods or calibration of a clock that the
/// emulator keeps exact. For clarity: a kernel oops is a panic, and a panic ends the machine (`-no-reboot`).
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 oops=panic tsc=reliable no_timer_check nokaslr \
     mitigations=off rcupdate.rcu_expedited=1 cryptomgr.notests audit=0 apparmor=0 random.trust_cpu=on";

/// Name of the image in the run's folder.
pub(super) const IMAGE: &str = "image";

/// A network card whose Ethernet frames travel as Unix datagrams: the other end is a port of `ftvm_demo::hub`, or a
/// card of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its address.
    pub mac: [u8; 6],
    /// QEMU's socket, which it makes.
    pub local: PathBuf,
    /// The other end's.
    pub remote: PathBuf,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The run's folder: holds the image and the channels' sockets.
    pub(super) dir: &'a Path,
    /// The bzImage.
    pub(super) kernel: PathBuf,
    pub(super) processors: u32,
    pub(super) memory_mib: u32,
    pub(super) nics: &'a [Nic],
    /// Raw images, which other machines may write at the same time.
    pub(super) disks: &'a [PathBuf],
    pub(super) shares: &'a [Share],
}

impl Machine<'_> {
    /// Starts QEMU. Its messages can be read from the child's stderr.
    pub(super) fn start(&self) -> Result<Child, super::Error> {
        Command::new(programs::find("setpriv")?)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(programs::find("qemu-system-x86_64")?)
            .args(self.arguments())
            // Relative names of sockets stay below the limit of 107 bytes.
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| super::Error::Io {
                what: "start QEMU".to_owned(),
                source,
            })
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: &OsStr| arguments.extend([flag.into(), value.into()]);
        add("-M", "q35".as_ref());
        // Not thread=multi: with it QEMU 7.2 lets nested guests on two CPUs meet triple faults (4 of 7 runs of a pair; none
        // in 10 with one thread).
        add("-accel", "tcg,thread=single".as_ref());
        add("-cpu", PROCESSOR.as_ref());
        add("-smp", self.processors.to_string().as_ref());
        add("-m", format!("{}M", self.memory_mib).as_ref());
        add("-kernel", self.kernel.as_os_str());
        add("-initrd", IMAGE.as_ref());
        add("-append", KERNEL_COMMAND_LINE.as_ref());
        add("-display", "none".as_ref());
        add("-monitor", "none".as_ref());
        add("-device", "virtio-serial-pci,id=ports".as_ref());
        for channel in Channel::ALL {
            let name = channel.name();
            add("-chardev", format!("socket,id={name},path={name}").as_ref());
            match channel {
                Channel::Console => add("-serial", format!("chardev:{name}").as_ref()),
                port => add("-device", port_device(port).as_ref()),
            }
        }
        for (number, nic) in self.nics.iter().enumerate() {
            let (id, mac) = (
                format!("net{number}"),
                nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            );
            let mut ends = OsString::from(format!("dgram,id={id},local.type=unix,local.path="));
            ends.push(&nic.local);
            ends.push(",remote.type=unix,remote.path=");
            ends.push(&nic.remote);
            add("-netdev", &ends);
            add("-device", format!("virtio-net-pci,netdev={id},mac={mac}").as_ref());
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let mut drive = OsString::from(format!(
                "if=none,id=disk{number},format=raw,cache=none,file.locking=off,file="
            ));
            drive.push(disk);
            add("-drive", &drive);
            add(
                "-device",
                format!("virtio-blk-pci,drive=disk{number},share-rw=on").as_ref(),
            );
        }
        if !self.shares.is_empty() {
            // The file system's daemon reads and writes the machine's memory.
            let size = self.memory_mib;
            add(
                "-object",
                format!("memory-backend-memfd,id=memory,size={size}M,share=on").as_ref(),
            );
            add("-machine", "memory-backend=memory".as_ref());
        }
        for share in self.shares {
            let (socket, tag) = (share.socket(self.dir), &share.tag);
            add("-chardev", format!("socket,id={tag},path={socket}").as_ref());
            add("-device", format!("vhost-user-fs-pci,chardev={tag},tag={tag}").as_ref());
        }
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
        arguments
    }
}

fn port_device(channel: Channel) -> String {
    let (name, number) = (channel.name(), channel as u8);
    format!("virtserialport,bus=ports.0,nr={number},chardev={name},name={name}")
}
