# Sourced by run_*.sh: functions that check a script's variables and arguments, and that run its commands or, with
# DRY_RUN=1, print them. options.py lists the tasks, methods and recipes; it answers at once and needs no packages.
# A script sets its variables at its top, as NAME=${NAME:-default}.

# refuse MESSAGE...: end the script with status 2
refuse() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

# ask WORD...: print the answer of options.py, from the first Python that can run it
ask() {
    local name
    for name in python3 .venv/bin/python python3.14 python3.13 python3.12 python3.11; do
        "$name" options.py "$@" 2>/dev/null && return
    done
    refuse "no Python here can read options.py, which needs 3.11 or newer: python3 options.py says what is wrong"
}

names=$(ask) || exit 2
eval "$names"  # ALL_TASKS: those of run_glue.sh; ALL_METHODS; ALL_TERMS; ALL_MAPS; DISTILLATION: options that need
# a teacher

# Refuse a variable whose singular or plural is meant: TASK for TASKS would be ignored without a word.
variables=" $(echo $(sed -n 's/^\([A-Z_]*\)=\${\1[:-].*/\1/p' "${0##*/}")) "
for variable in $variables; do
    case $variable in
        TERMS) continue ;;  # TERM is the terminal
        CRITERIA) sister=CRITERION ;;
        *S) sister=${variable%S} ;;
        *) sister=${variable}S ;;
    esac
    [ -z "${!sister:-}" ] || [[ $variables == *" $sister "* ]] ||
        refuse "$sister is no variable of this script: set $variable (see its top), or unset $sister"
done

# switch VARIABLE: leave 1, turn 0 and no into nothing, refuse any other value
switch() {
    case ${!1} in
        1) ;;
        "" | 0 | no) printf -v "$1" %s "" ;;
        *) refuse "$1 is ${!1}: use 1 for yes; 0, no or nothing for no" ;;
    esac
}

# check VARIABLE NAMES [REGEX]: refuse a variable that is blank or holds a word other than NAMES; with REGEX, a word that
# does not match it (NAMES then describes the words that do)
check() {
    local values=${!1} word known=${3:-${2// /|}}
    [[ $values =~ [^[:space:]] ]] || refuse "$1 is blank: use $2"
    for word in $values; do
        [[ $word =~ ^($known)$ ]] || refuse "$1 names $word: use $2"
    done
}

# split_options ARGUMENT...: put options of distillation and their values into the array distilling, others into others
split_options() {
    local word to=others
    others=() distilling=()
    for word in "$@"; do
        if [[ $word == --* ]]; then
            if [[ " $DISTILLATION " == *" ${word%%=*} "* ]]; then to=distilling; else to=others; fi
        fi
        if [ "$to" = distilling ]; then distilling+=("$word"); else others+=("$word"); fi
    done
}

# find_precision ARGUMENT...: put --mixed_precision and its value into the array precision
find_precision() {
    local word before=
    precision=()
    for word in "$@"; do
        case $before/$word in
            --mixed_precision/*) precision=(--mixed_precision "$word") ;;
            */--mixed_precision=*) precision=("$word") ;;
        esac
        before=$word
    done
}

# check_options ARGUMENT...: refuse an option that must differ between the script's commands
check_options() {
    local word
    for word in "$@"; do
        case ${word%%=*} in
            --task | --teacher | --student | --terms | --run_name | --seed | --output_dir)
                refuse "${word%%=*} would be the same in all commands: set the script's variables instead, see its top" ;;
        esac
    done
}

# start FUNCTION ARGUMENT...: run the commands that the function gives to `run`, or print them with DRY_RUN.
# Before the first command runs, every command of the first seed checks its options; with --check_only among the
# arguments, nothing else happens.
start() {
    local commands=$1 checking= launcher
    shift
    if [ -z "$DRY_RUN" ]; then
        source scripts/setup.sh
        read -r launcher _ <<<"$LAUNCH"
        type -P "$launcher" >/dev/null || refuse "LAUNCH names '$launcher', which is no command here"
        check_student
        check_all "$commands"
        [[ " $* " != *" --check_only "* ]] || exit 0
    fi
    "$commands"
}

# check_all FUNCTION: run its commands with --check_only, for the first seed
check_all() {
    local checking=1 seed
    for seed in $SEEDS; do break; done
    local SEEDS=$seed
    "$1"
}

# check_student: refuse a STUDENT that is no model now, not after the teacher has been trained
check_student() {
    [[ $variables == *" STUDENT "* && -n $STUDENT && $STUDENT != "${TEACHER:-}" ]] || return 0
    python - "$STUDENT" "$(basename "$0")" <<'PYTHON'
import sys
import models
from engine import command_line
name, sys.argv[0] = sys.argv[1:]
command_line.quiet()
command_line.run_script(lambda: models.load_config(name, "STUDENT"))
PYTHON
}

# run COMMAND...: run it; with DRY_RUN print it as one line that can be pasted; within check_all only check its options
run() {
    local line
    if [ -n "$checking" ]; then
        while [[ $1 != distill_*.py ]]; do shift && [ $# -gt 0 ] || return 0; done
        python "$@" --check_only
    elif [ -n "$DRY_RUN" ]; then
        printf -v line '%q ' "$@" && printf '%s\n' "${line% }"
    else
        "$@"
    fi
}

# method_options METHOD: print a method's options. ckd and kd take the task's recipe unless TERMS or TEMPERATURE is set;
# the other methods have their own weights
method_options() {
    case $1 in
        ckd) echo --terms ${TERMS:-ckd} ${TEMPERATURE:+--temperature "$TEMPERATURE"} ;;
        kd) echo --terms kd ${TEMPERATURE:+--temperature "$TEMPERATURE"} ;;
        finetune) ;;
        *) echo --terms "$1" ;;
    esac
}

# own_data ARGUMENT...: put the options of DATA_OPTIONS (TASKS=custom) into the array own; quotes keep blanks together.
# Put the name of the task's folder into own_folder: --dataset_name if it is given, else custom.
own_data() {
    local words word before=
    own=() own_folder=custom
    if [[ $DATA_OPTIONS =~ [^[:space:]] ]]; then
        [[ " ${TASKS:-${TASK:-}} " == *" custom "* ]] || refuse "DATA_OPTIONS are for custom: name it among the tasks"
        words=$(xargs printf '%s\n' <<<"$DATA_OPTIONS" 2>/dev/null) || refuse "DATA_OPTIONS has a quote without its end"
        while IFS= read -r word; do own+=("$word"); done <<<"$words"
        check_options "${own[@]}"
    fi
    for word in ${own[@]+"${own[@]}"} "$@"; do
        case $before/$word in
            --dataset_name/*) own_folder=$word ;;
            */--dataset_name=*) own_folder=${word#*=} ;;
        esac
        before=$word
    done
}

# enter TASK: put the options that locate its data into the array data, and its folder below $RUNS into place
enter() {
    place=$1 data=(${DATA_DIR:+--data_dir "$DATA_DIR"})
    [ "$1" != custom ] || place=$own_folder data=(${own[@]+"${own[@]}"})
}

# schedule TASK: print learning rate and epochs of its students; students without a teacher get the recipe only here
schedule() {
    local rate epochs
    read -r _ _ _ rate epochs < <(ask recipe "$1")
    echo --learning_rate "${LEARNING_RATE:-$rate}" --num_train_epochs "${EPOCHS:-$epochs}"
}

# train_teacher TASK OPTIONS...: train $RUNS/<task>/teacher/seed1, the teacher of all students of the task
train_teacher() {
    local task=$1
    shift
    enter "$task"
    run $LAUNCH distill_finetune.py --task "$task" ${data[@]+"${data[@]}"} --student "$TEACHER" --run_name teacher \
        --seed 1 --learning_rate "$TEACHER_LEARNING_RATE" --num_train_epochs "$TEACHER_EPOCHS" \
        --output_dir "$RUNS/$place/teacher/seed1" "$@"
}

# check_recipes METHOD...: refuse a file $RECIPES without a line for each method, and variables that contradict the file
check_recipes() {
    local method variable word
    for word in ${others[@]+"${others[@]}"} ${distilling[@]+"${distilling[@]}"}; do
        [[ " --learning_rate $DISTILLATION " != *" ${word%%=*} "* || $word == --cache_teacher ]] ||
            refuse "${word%%=*} and RECIPES both say how a student is trained: leave one out"
    done
    for variable in TERMS TEMPERATURE LEARNING_RATE; do
        [ -z "${!variable:-}" ] || refuse "$variable and RECIPES both say how a student is trained: set one of them"
    done
    [ -f "$RECIPES" ] && [ -r "$RECIPES" ] || refuse "RECIPES names $RECIPES, which cannot be read"
    for method in "$@"; do
        [ -n "$(recipe_of "$method")" ] || refuse "$RECIPES has no options for $method: put it into METHODS of" \
            "run_sweep.sh, or leave it out of METHODS"
    done
}

# recipe_of METHOD: print its options from the file $RECIPES, which holds a line "METHOD OPTION..." for each method;
# comments after # and the line ends of Windows are removed
recipe_of() {
    awk -v method="$1" 'NR == 1 { sub(/^\357\273\277/, "") } { sub(/\r$/, ""); sub(/#.*/, "") }
        $1 == method && NF > 1 { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); print; exit }' < "$RECIPES"
}
