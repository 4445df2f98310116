# From where Firecracker enters a kernel (64 bits, ring 0, %rsi the boot
# parameters) to guest.c in ring 3, with I/O privilege: where KVM itself runs in a
# virtual machine, ring 0 may be emulated, instruction by instruction.

    .section .text.start, "ax"
    .globl _start
_start:
    cli
    lgdt descriptors_pointer(%rip)
    lea top_table(%rip), %rax
    mov %rax, %cr3
    pushq $0x1b                 # data of ring 3
    lea stack_end(%rip), %rax
    pushq %rax
    pushq $0x3002               # flags: I/O for ring 3, no interrupts
    pushq $0x23                 # code of ring 3
    lea ring3(%rip), %rax
    pushq %rax
    iretq
ring3:
    xor %ebp, %ebp
    mov %rsi, %rdi
    call Main
1:  jmp 1b

    .data
    .balign 16
descriptors:
    .quad 0
    .quad 0x00af9b000000ffff    # code and data of ring 0
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff    # data and code of ring 3
    .quad 0x00affb000000ffff
descriptors_pointer:
    .word . - descriptors - 1
    .quad descriptors

# Every address is the same in virtual memory: the first GiB, and the fourth,
# where devices are (not cached).
    .balign 4096
top_table:
    .quad upper_table + 7
    .fill 511, 8, 0
upper_table:
    .quad memory_table + 7
    .quad 0
    .quad 0
    .quad device_table + 7
    .fill 508, 8, 0
memory_table:
    .set i, 0
    .rept 512
    .quad (i << 21) | 0x87
    .set i, i + 1
    .endr
device_table:
    .set i, 0
    .rept 512
    .quad (0xc0000000 + (i << 21)) | 0x9f
    .set i, i + 1
    .endr

    .bss
    .balign 4096
    .skip 16384
stack_end:
