use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::{PAGE_SHIFT, Terminal};

const RAM: usize = 0x4_0000;

fn cpu(program: Script, delivery: DeliveryMode) -> ScriptedCpu {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    ScriptedCpu::new(&memory, Arc::new(program), delivery)
}

fn out(value: Operand) -> ScriptStep {
    ScriptStep::PortWrite {
        port: 0x10,
        size: 8,
        value,
    }
}

const IN: ScriptStep = ScriptStep::PortRead { port: 0x20, size: 4 };

/// Runs `exits` exits, answering reads with `answer(exit number)` and interrupting where told; the bytes written.
fn history(cpu: &mut ScriptedCpu, exits: u64, answer: impl Fn(u64) -> u8, interrupt_at: &[u64]) -> Vec<u8> {
    let mut written = Vec::new();
    let mut number = 0;
    while number < exits {
        let exit = match cpu.complete().unwrap() {
            Some(exit) => exit,
            None => {
                if interrupt_at.contains(&number) && cpu.can_interrupt() {
                    cpu.interrupt(0x20).unwrap();
                }
                cpu.run().unwrap()
            }
        };
        if matches!(exit, Exit::Interrupted | Exit::Terminal(_)) {
            continue;
        }
        number += 1;
        match exit {
            Exit::PortRead { .. } | Exit::MmioRead { .. } | Exit::ReadMsr { .. } => cpu.data().fill(answer(number)),
            _ => written.extend_from_slice(cpu.data()),
        }
    }
    while cpu.complete().unwrap().is_some() {}
    written
}

#[test]
fn the_same_inputs_at_the_same_exits_give_the_same_outputs() {
    for seed in 0..10 {
        let program = Script::random(seed, 200);
        let mut cpus = [(); 2].map(|()| cpu(program.clone(), DeliveryMode::None));
        // The second is kicked all the time.
        cpus[1].scripted_kick().kick_after(3);
        let [first, second] = &mut cpus;
        let outputs = history(first, 1000, |number| number.to_le_bytes()[0], &[100, 900]);
        assert_eq!(
            history(second, 1000, |number| number.to_le_bytes()[0], &[100, 900]),
            outputs
        );
        assert_eq!(first.save().unwrap(), second.save().unwrap());
        assert!(outputs.len() > 100);
    }
}

#[test]
fn an_input_one_exit_off_changes_all_later_outputs() {
    let program = Script::repeat(vec![
        IN,
        ScriptStep::SetInterrupts(Interrupts::On),
        out(Operand::Accumulator),
        out(Operand::Accumulator),
    ]);
    let run = |answer: fn(u64) -> u8, interrupts: &[u64]| {
        history(&mut cpu(program.clone(), DeliveryMode::None), 60, answer, interrupts)
    };
    let base = run(|_| 7, &[10]);
    let later = run(|_| 7, &[12]);
    assert_eq!(base[..40], later[..40]);
    assert!(
        base[64..]
            .chunks(8)
            .zip(later[64..].chunks(8))
            .all(|(one, other)| one != other)
    );
    assert_ne!(base, run(|number| if number == 1 { 8 } else { 7 }, &[10]));
}

#[test]
fn an_update_gives_its_write_when_it_is_finished() {
    let update = ScriptStep::MmioUpdate {
        addr: 0x9000_0000,
        len: 4,
    };
    for by_complete in [true, false] {
        let mut cpu = cpu(Script::repeat(vec![update, ScriptStep::Halt]), DeliveryMode::None);
        assert_eq!(
            cpu.run().unwrap(),
            Exit::MmioRead {
                addr: 0x9000_0000,
                len: 4
            }
        );
        cpu.data().copy_from_slice(&[2, 0, 0, 9]);
        let write = if by_complete {
            cpu.complete().unwrap().unwrap()
        } else {
            cpu.run().unwrap()
        };
        assert_eq!(
            write,
            Exit::MmioWrite {
                addr: 0x9000_0000,
                len: 4
            }
        );
        assert_eq!(cpu.data(), [3, 0, 0, 9]);
        assert_eq!(cpu.complete().unwrap(), None);
        assert_eq!(cpu.run().unwrap(), Exit::Hlt);
        assert_eq!(cpu.registers()[RCX], 3);
    }
}

#[test]
fn an_interrupt_runs_the_handler_once_and_returns() {
    let program = Script::repeat(vec![
        ScriptStep::SetInterrupts(Interrupts::On),
        ScriptStep::Halt,
        out(Operand::Const(5)),
        ScriptStep::Halt,
    ]);
    let mut cpu = cpu(program, DeliveryMode::None);
    assert_eq!(cpu.run().unwrap(), Exit::Hlt);
    assert!(cpu.can_interrupt());
    cpu.interrupt(0x21).unwrap();
    assert!(!cpu.can_interrupt());
    assert_eq!(
        cpu.run().unwrap(),
        Exit::PortWrite {
            port: 0x20,
            size: 1,
            count: 1
        }
    );
    assert_eq!(cpu.data(), [0x20]);
    // The end-of-interrupt is the handler's last step: it returns with interrupts on.
    assert!(cpu.interrupt_flag());
    assert_eq!(
        cpu.run().unwrap(),
        Exit::PortWrite {
            port: 0x10,
            size: 8,
            count: 1
        }
    );
    assert_eq!(cpu.run().unwrap(), Exit::Hlt);
}

#[test]
fn a_window_opens_where_interrupts_come_on() {
    let steps = vec![
        out(Operand::Const(1)),
        ScriptStep::SetInterrupts(Interrupts::On),
        out(Operand::Const(2)),
    ];
    let mut with_windows = cpu(Script::repeat(steps.clone()), DeliveryMode::Window);
    with_windows.run().unwrap();
    with_windows.request_window(true);
    assert!(!with_windows.can_interrupt());
    assert_eq!(with_windows.run().unwrap(), Exit::IrqWindow);
    assert!(with_windows.can_interrupt());
    with_windows.request_window(false);
    assert!(matches!(with_windows.run().unwrap(), Exit::PortWrite { .. }));
    assert_eq!(with_windows.registers()[RCX], 3);

    let mut without = cpu(Script::repeat(steps), DeliveryMode::None);
    without.run().unwrap();
    without.request_window(true);
    assert!(matches!(without.run().unwrap(), Exit::PortWrite { .. }));
}

#[test]
fn a_stretch_without_exits_is_moved_by_state_and_pages() {
    let program = Script::repeat(vec![
        ScriptStep::SetInterrupts(Interrupts::On),
        ScriptStep::Spin { units: 50_000 },
        out(Operand::Accumulator),
        ScriptStep::Load { addr: 0x1_0000, len: 8 },
    ]);
    let (mut primary, mut backup) = (
        cpu(program.clone(), DeliveryMode::None),
        cpu(program, DeliveryMode::None),
    );
    let mut pages = Vec::new();
    primary.harvest_dirty(&mut pages).unwrap();
    primary.scripted_kick().kick_after(777);
    assert_eq!(primary.run().unwrap(), Exit::Interrupted);
    assert_eq!(primary.registers()[RBX], 777);
    assert!(primary.at_clean_boundary().unwrap());
    let state = primary.save().unwrap();
    primary.harvest_dirty(&mut pages).unwrap();
    assert_eq!(
        pages,
        (0x10..0x20).collect::<Vec<u64>>(),
        "all of the scratch pages, nothing else"
    );
    for page in pages.iter().map(|page| GuestAddress(page << PAGE_SHIFT)) {
        let mut bytes = [0; 4096];
        primary.memory.read_slice(&mut bytes, page).unwrap();
        backup.memory.write_slice(&bytes, page).unwrap();
    }
    backup.restore(&state).unwrap();
    for cpu in [&mut primary, &mut backup] {
        cpu.interrupt(0x20).unwrap();
    }
    assert_eq!(
        history(&mut primary, 20, |_| 0, &[]),
        history(&mut backup, 20, |_| 0, &[])
    );
    let mut never_kicked = cpu(Script::clone(&primary.program), DeliveryMode::None);
    assert_ne!(
        history(&mut never_kicked, 20, |_| 0, &[]),
        history(&mut primary, 20, |_| 0, &[])
    );
}

#[test]
fn what_the_cpu_stores_is_in_its_dirty_log_and_not_in_the_hosts_bitmap() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let store = ScriptStep::Store {
        addr: 0x2ffc,
        len: 8,
        value: Operand::Const(u64::MAX),
    };
    let mut cpu = cpu(Script::repeat(vec![store, ScriptStep::Halt]), DeliveryMode::None);
    cpu.run().unwrap();
    assert_eq!(cpu.memory.read_obj::<u64>(GuestAddress(0x2ffc)).unwrap(), u64::MAX);
    let mut pages = Vec::new();
    cpu.dirty(&mut pages).unwrap();
    assert_eq!(pages, [2, 3]);
    cpu.forget_dirty(&[2, 7]).unwrap();
    cpu.harvest_dirty(&mut pages).unwrap();
    assert_eq!(pages, [3]);
    let region = cpu.memory.iter().next().unwrap();
    assert!((0..RAM).step_by(4096).all(|offset| !region.bitmap().dirty_at(offset)));
    cpu.harvest_dirty(&mut pages).unwrap();
    assert!(pages.is_empty());
}

#[test]
fn a_kick_between_two_runs_interrupts_the_next_one_only() {
    let mut cpu = cpu(Script::repeat(vec![IN]), DeliveryMode::None);
    cpu.kicker().kick();
    assert_eq!(cpu.run().unwrap(), Exit::Interrupted);
    assert!(matches!(cpu.run().unwrap(), Exit::PortRead { .. }));
    assert_eq!(cpu.registers()[RCX], 1);
}

#[test]
fn a_refused_msr_is_not_an_answered_one() {
    let run = |refused: bool| {
        let mut cpu = cpu(
            Script::repeat(vec![ScriptStep::ReadMsr { index: 0x10 }, ScriptStep::Halt]),
            DeliveryMode::None,
        );
        assert_eq!(cpu.run().unwrap(), Exit::ReadMsr { index: 0x10 });
        assert_eq!(cpu.data().len(), 8);
        if refused {
            cpu.refuse_msr();
        }
        cpu.run().unwrap();
        cpu.registers()[RAX]
    };
    assert_ne!(run(true), run(false));
}

#[test]
fn an_answer_in_registers_is_an_input_too() {
    let mut cpu = cpu(Script::repeat(vec![out(Operand::Accumulator)]), DeliveryMode::None);
    cpu.run().unwrap();
    cpu.complete().unwrap();
    let before = cpu.registers();
    cpu.set_registers(&before).unwrap();
    assert_eq!(cpu.registers(), before);
    let mut changed = before;
    changed[RDX] = 9;
    cpu.set_registers(&changed).unwrap();
    assert_ne!(cpu.registers()[RAX], before[RAX]);
}

#[test]
fn damaged_states_and_scripts_are_errors() {
    let mut cpu = cpu(
        Script::repeat(vec![ScriptStep::Store {
            addr: 1 << 40,
            len: 8,
            value: Operand::Const(0),
        }]),
        DeliveryMode::None,
    );
    assert!(cpu.run().unwrap_err().to_string().contains("0x10000000000"));
    let good = cpu.save().unwrap();
    for place in [
        Place::Program(1),
        Place::Handler {
            step: 9,
            back: 0,
            units: 0,
        },
        Place::Handler {
            step: 0,
            back: 1,
            units: 0,
        },
    ] {
        let state = ScriptedState { place, ..good.clone() };
        assert!(cpu.restore(&state).is_err(), "{place:?}");
    }
    cpu.restore(&good).unwrap();
}

#[test]
fn a_script_without_exits_comes_back_and_a_failing_one_ends() {
    let mut endless = cpu(
        Script::repeat(vec![ScriptStep::Spin { units: u64::MAX }]),
        DeliveryMode::None,
    );
    assert_eq!(endless.run().unwrap(), Exit::Interrupted);
    let mut failing = cpu(Script::repeat(vec![ScriptStep::Fail]), DeliveryMode::None);
    assert_eq!(failing.run().unwrap(), Exit::Terminal(Terminal::Shutdown));
}
