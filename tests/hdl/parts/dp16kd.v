// Behaviour of the ECP5 blocks that hdl/parts instantiates, as Lattice publishes it (TN-02204,
// TN-02205): only the modes in use, and an error for any other.

// Block RAM.  Port A writes; at 36 bits the upper half of its data comes in at the pins of port B,
// and address pins 3..0 (1..0 at 18 bits) enable the bytes of nine bits.  Port B reads through its
// output register; at 36 bits the lower half comes out at the pins of port A, through that port's.
module DP16KD(
    input CLKA, CEA, OCEA, RSTA, WEA, CSA0, CSA1, CSA2,
    input CLKB, CEB, OCEB, RSTB, WEB, CSB0, CSB1, CSB2,
    input ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    input ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    input DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13,
    input DIA14, DIA15, DIA16, DIA17,
    input DIB0, DIB1, DIB2, DIB3, DIB4, DIB5, DIB6, DIB7, DIB8, DIB9, DIB10, DIB11, DIB12, DIB13,
    input DIB14, DIB15, DIB16, DIB17,
    output DOA0, DOA1, DOA2, DOA3, DOA4, DOA5, DOA6, DOA7, DOA8, DOA9, DOA10, DOA11, DOA12, DOA13,
    output DOA14, DOA15, DOA16, DOA17,
    output DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13,
    output DOB14, DOB15, DOB16, DOB17);

    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18;
    parameter REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC", GSR = "ENABLED";
    parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL";
    parameter CSDECODE_A = "0b000", CSDECODE_B = "0b000", CLKAMUX = "CLKA", CLKBMUX = "CLKB";

    // Address pins that a port of this width does not use.
    function integer spare(input integer width);
        case (width)
            36: spare = 5;
            18: spare = 4;
            9: spare = 3;
            4: spare = 2;
            2: spare = 1;
            default: spare = 0;
        endcase
    endfunction

    wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2,
                       ADA1, ADA0};
    wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2,
                       ADB1, ADB0};
    wire [35:0] di = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7,
                      DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0, DIA17, DIA16, DIA15, DIA14, DIA13,
                      DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1,
                      DIA0};
    reg [35:0] latch = 0;
    reg [17:0] low = 0, out = 0;
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
            DOA4, DOA3, DOA2, DOA1, DOA0} = low;
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
            DOB4, DOB3, DOB2, DOB1, DOB0} = out;

    // Nine bits a byte; ports of less than nine see eight of them.
    reg [8:0] bytes [0:2047];
    integer i, j;
    initial begin
        for (i = 0; i < 2048; i = i + 1) bytes[i] = 0;
        if (WRITEMODE_A != "NORMAL" || RESETMODE != "SYNC" || CSDECODE_A != "0b000"
            || CSDECODE_B != "0b000" || CLKAMUX != "CLKA" || CLKBMUX != "CLKB"
            || REGMODE_B != "OUTREG" || DATA_WIDTH_B == 36 && REGMODE_A != "OUTREG") begin
            $display("DP16KD: a mode that the model lacks");
            $finish;
        end
    end

    wire a_on = CEA & WEA & ~CSA0 & ~CSA1 & ~CSA2;
    wire b_on = CEB & ~CSB0 & ~CSB1 & ~CSB2;
    localparam A_PART = DATA_WIDTH_A < 9 ? DATA_WIDTH_A : 9;
    localparam B_PART = DATA_WIDTH_B < 9 ? DATA_WIDTH_B : 9;
    wire [13:0] a_clear = ada >> spare(DATA_WIDTH_A) << spare(DATA_WIDTH_A);
    wire [13:0] b_clear = adb >> spare(DATA_WIDTH_B) << spare(DATA_WIDTH_B);

    always @(posedge CLKA) begin
        if (a_on) begin
            if (DATA_WIDTH_A < 9)
                bytes[a_clear[13:3]][{1'b0, a_clear[2:0]} +: A_PART] <= di[A_PART - 1:0];
            else
                for (i = 0; 9 * i < DATA_WIDTH_A; i = i + 1)
                    if (DATA_WIDTH_A == 9 || ada[i])
                        bytes[a_clear[13:3] + i[10:0]] <= di[9 * i +: 9];
        end
    end

    always @(posedge CLKB) begin
        if (b_on & ~WEB) begin
            if (DATA_WIDTH_B < 9)
                latch <= {{36 - B_PART{1'b0}},
                          bytes[b_clear[13:3]][{1'b0, b_clear[2:0]} +: B_PART]};
            else
                for (j = 0; 9 * j < DATA_WIDTH_B; j = j + 1)
                    latch[9 * j +: 9] <= bytes[b_clear[13:3] + j[10:0]];
        end
        if (CEB & OCEB) out <= DATA_WIDTH_B == 36 ? latch[35:18] : latch[17:0];
        if (CEB & OCEA) low <= latch[17:0];
        if (RSTB) out <= 0;
        if (RSTA) low <= 0;
    end
endmodule

// Multiplier of two numbers of 18 bits with registers at its inputs, its middle and its output.
module MULT18X18D(
    input CLK0, CE0, RST0, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17, P18, P19,
    output P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35);

    parameter REG_INPUTA_CLK = "NONE", REG_INPUTB_CLK = "NONE", REG_PIPELINE_CLK = "NONE";
    parameter REG_OUTPUT_CLK = "NONE", CLK0_DIV = "ENABLED", GSR = "ENABLED", RESETMODE = "SYNC";

    wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [17:0] a_in = 0, b_in = 0;
    reg signed [35:0] middle = 0, out = 0;
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
            P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0}
        = out;
    wire [17:0] a_now = REG_INPUTA_CLK == "CLK0" ? a_in : a;
    wire [17:0] b_now = REG_INPUTB_CLK == "CLK0" ? b_in : b;
    // A sign bit in front that is zero where the operand is unsigned.
    wire signed [18:0] a_signed = {a_now[17] & SIGNEDA, a_now};
    wire signed [18:0] b_signed = {b_now[17] & SIGNEDB, b_now};
    wire signed [37:0] product = a_signed * b_signed;
    wire signed [35:0] piped = REG_PIPELINE_CLK == "CLK0" ? middle : product[35:0];

    initial if (REG_OUTPUT_CLK != "CLK0" || RESETMODE != "SYNC") begin
        $display("MULT18X18D: a mode that the model lacks");
        $finish;
    end
    always @(posedge CLK0) begin
        if (CE0) begin
            a_in <= a;
            b_in <= b;
            middle <= product[35:0];
            out <= piped;
        end
        if (RST0) begin
            a_in <= 0;
            b_in <= 0;
            middle <= 0;
            out <= 0;
        end
    end
endmodule
