# What runs in the tiny virtual machine: obeys orders about pages of its memory,
# for ever. An order is four words that it reads from a port, the answer three
# that it writes to another one; tiny_vm.h has both.
#
# It runs in ring 3, with I/O privilege: where KVM itself runs in a virtual
# machine, ring 0 may be emulated, instruction by instruction. The code does not
# depend on its address.

    .section .rodata
    .globl FirsttouchKvmGuest
    .globl FirsttouchKvmGuestEnd
    .balign 16
FirsttouchKvmGuest:
next_order:
    mov $0x10, %edx
    in %dx, %eax
    mov %eax, %ebx              # what: 0 nothing, 1 fill, 2 look
    test %eax, %eax
    jz next_order
    in %dx, %eax
    mov %rax, %r8
    shl $12, %r8                # the first page's address
    in %dx, %eax
    mov %rax, %r9
    shl $12, %r9
    add %r8, %r9                # the last page's end
    in %dx, %eax
    mov %rax, %r10              # of the pattern
    movabs $0x9E3779B97F4A7C15, %r11
    xor %r12d, %r12d            # pages that are as the pattern,
    xor %r13d, %r13d            # zero,
    xor %r14d, %r14d            # neither
next_page:
    cmp %r9, %r8
    jae answer
    lea 4096(%r8), %rsi
    xor %r15d, %r15d            # bits that are not as the pattern has them
    xor %ebp, %ebp              # bits that are not zero
next_word:
    lea (%r8, %r10), %rax
    imul %r11, %rax
    cmp $1, %ebx
    jne compare
    mov %rax, (%r8)
compare:
    mov (%r8), %rcx
    or %rcx, %rbp
    xor %rax, %rcx
    or %rcx, %r15
    add $8, %r8
    cmp %rsi, %r8
    jb next_word
    test %r15, %r15
    jnz not_as_pattern
    inc %r12
    jmp next_page
not_as_pattern:
    test %rbp, %rbp
    jnz neither
    inc %r13
    jmp next_page
neither:
    inc %r14
    jmp next_page
answer:
    mov $0x14, %edx
    mov %r12d, %eax
    out %eax, %dx
    mov %r13d, %eax
    out %eax, %dx
    mov %r14d, %eax
    out %eax, %dx
    jmp next_order
FirsttouchKvmGuestEnd:

    .section .note.GNU-stack, "", @progbits
